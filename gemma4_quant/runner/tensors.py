"""`struct ggml_tensor` (ggml.h) as ctypes reads it, checked against the installed library before it is trusted."""

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma4_quant.errors import RunError
from gemma4_quant.ggml import GgmlType
from gemma4_quant.runner.llama_library import Libraries, libraries

_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_SOURCES = 10  # GGML_MAX_SRC
_OP_PARAM_WORDS = 16  # GGML_MAX_OP_PARAMS / sizeof(int32_t)
_NAME_BYTES = 64  # GGML_MAX_NAME
_OBJECT_BYTES = 32  # sizeof(struct ggml_object), which precedes every tensor in a context


class GgmlTensor(ctypes.Structure):
    """A node or weight of a compute graph."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * _MAX_DIMS),
        ("nb", ctypes.c_size_t * _MAX_DIMS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * _OP_PARAM_WORDS),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _MAX_SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * _NAME_BYTES),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


@dataclass(frozen=True)
class OpCodes:
    """Numbers of the two operations that multiply by a weight, in the installed library."""

    mul_mat: int
    mul_mat_id: int


@functools.cache
def checked_op_codes() -> OpCodes:
    """Compare GgmlTensor with tensors that the installed ggml makes, and return its operation numbers.

    Raises RunError when the layout is another one: reading activations through it would crash or lie.
    """
    loaded = libraries()
    base = loaded.ggml_base
    if base.ggml_tensor_overhead() != _OBJECT_BYTES + ctypes.sizeof(GgmlTensor):
        raise _layout_error("its size")
    context = _new_context(loaded)
    try:
        weight = base.ggml_new_tensor_3d(context, GgmlType.F32, 8, 3, 2)
        base.ggml_set_name(weight, b"layout.check")
        inputs = base.ggml_new_tensor_3d(context, GgmlType.F32, 8, 2, 5)
        matrix = base.ggml_new_tensor_2d(context, GgmlType.F16, 8, 3)
        experts = base.ggml_new_tensor_2d(context, GgmlType.I32, 2, 5)
        product = base.ggml_mul_mat(context, matrix, base.ggml_new_tensor_2d(context, GgmlType.F32, 8, 5))
        routed = base.ggml_mul_mat_id(context, weight, inputs, experts)
        _check_fields(base, weight, product, routed, (weight, inputs, experts))
        return OpCodes(tensor_at(product).op, tensor_at(routed).op)
    finally:
        base.ggml_free(context)


def _check_fields(base: Any, weight: int, product: int, routed: int, sources: tuple[int, ...]) -> None:
    seen = tensor_at(weight)
    facts = {
        "type": seen.type == GgmlType.F32,
        "ne": tuple(seen.ne) == (8, 3, 2, 1),
        "nb": tuple(seen.nb) == (4, 32, 96, 192),
        "data": seen.data == base.ggml_get_data(weight),
        "name": seen.name == b"layout.check",
        "buffer": seen.buffer is None,
        "src": tuple(tensor_at(routed).src[:3]) == sources,
        "op of MUL_MAT": base.ggml_op_name(tensor_at(product).op) == b"MUL_MAT",
        "op of MUL_MAT_ID": base.ggml_op_name(tensor_at(routed).op) == b"MUL_MAT_ID",
    }
    wrong = [name for name, holds in facts.items() if not holds]
    if wrong:
        raise _layout_error(", ".join(wrong))


def _layout_error(what: str) -> RunError:
    return RunError(
        f"ggml_tensor of the installed llama-cpp-python is laid out differently ({what}), so activations cannot "
        "be read; install the version that this release of gemma4-quant was tested with (0.3.36)"
    )


class _InitParams(ctypes.Structure):
    """struct ggml_init_params (ggml.h)."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def _new_context(loaded: Libraries) -> int:
    init = loaded.ggml_base.ggml_init
    init.restype, init.argtypes = ctypes.c_void_p, [_InitParams]
    context = init(_InitParams(1 << 16, None, False))
    if not context:
        raise RunError("ggml cannot make a context of 64 KiB: out of memory")
    return int(context)


def tensor_at(address: int) -> GgmlTensor:
    """Return the tensor at an address that ggml gave us."""
    return GgmlTensor.from_address(address)


def read_tensor(address: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Return a tensor's values as an array in numpy order, (ne3, ne2, ne1, ne0), strides as ggml has them.

    A view of host memory where possible (valid only until the graph goes on), else a copy from the device.
    dtype: float32 or int32; the caller has checked the tensor's type.
    """
    tensor = tensor_at(address)
    base = libraries().ggml_base
    n_bytes = int(base.ggml_nbytes(address))
    buffer: Any
    if tensor.buffer is None or base.ggml_backend_buffer_is_host(tensor.buffer):
        buffer = (ctypes.c_uint8 * n_bytes).from_address(tensor.data)
    else:
        buffer = (ctypes.c_uint8 * n_bytes)()
        base.ggml_backend_tensor_get(address, ctypes.addressof(buffer), 0, n_bytes)
    shape = tuple(reversed(tuple(tensor.ne)))
    return np.ndarray(shape, dtype, buffer, strides=tuple(reversed(tuple(tensor.nb))))
