"""ggml's own quantizers, in the library that llama-cpp-python brings.

The library is opened by its path: importing llama_cpp, which is the runner's business, would load all of llama.cpp to
call three functions that need none of it.
"""

import ctypes
import functools
import importlib.util
import os
import threading
from pathlib import Path

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.errors import RunError
from gemma4_quant.ggml import GgmlType, row_bytes

_INITIALISED: set[GgmlType] = set()
_LOCK = threading.Lock()


def quantize_rows(kind: GgmlType, rows: Float32Rows, importance: Float32Row) -> ByteRows:
    """Encode rows with ggml_quantize_chunk, without the GIL.

    rows: (n_rows, n_cols) float32, C-contiguous, finite and within float16's range; importance: (n_cols,) float32,
    positive. Other values make ggml end the process. Returns (n_rows, row_bytes) uint8.
    """
    library = _library()
    with _LOCK:  # the tables of a type are made once, and take a second
        if kind not in _INITIALISED:
            library.ggml_quantize_init(int(kind))
            _INITIALISED.add(kind)
    n_rows, n_columns = rows.shape
    out = np.zeros((n_rows, row_bytes(kind, n_columns)), np.uint8)
    written = library.ggml_quantize_chunk(
        int(kind), rows.ctypes.data, out.ctypes.data, 0, n_rows, n_columns, importance.ctypes.data
    )
    if written != out.nbytes:
        raise RunError(f"ggml wrote {written} bytes of {kind.name} where {out.nbytes} were expected; report this")
    return out


def dequantize_rows(kind: GgmlType, data: ByteRows, n_columns: int) -> Float32Rows:
    """Decode rows with ggml's dequantize_row_*, without the GIL; (n_rows, row_bytes) uint8 to (n_rows, n_columns)."""
    data = np.ascontiguousarray(data)
    out = np.empty((len(data), n_columns), np.float32)
    _decoder(kind)(data.ctypes.data, out.ctypes.data, out.size)
    return out


@functools.cache
def _library() -> ctypes.CDLL:
    folder = _library_folder()
    # named as ggml's CMake files name it on Linux, macOS and Windows
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        raise RunError(f"{folder} holds no ggml-base library; install it again: pip install llama-cpp-python")
    try:
        # the parts of ggml refer to each other: what is not called need not be found
        library = ctypes.CDLL(str(found[0]), mode=getattr(os, "RTLD_LAZY", 0))
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library.ggml_quantize_init.argtypes, library.ggml_quantize_init.restype = [ctypes.c_int], None
        library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
    except (OSError, AttributeError) as error:
        raise RunError(f"{found[0]} cannot be used: {error}; pip install llama-cpp-python>=0.3.36") from error
    return library


def _library_folder() -> Path:
    """Return where llama-cpp-python keeps its libraries, or where its own variable says they are."""
    if "LLAMA_CPP_LIB_PATH" in os.environ:
        return Path(os.environ["LLAMA_CPP_LIB_PATH"])
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise RunError("llama-cpp-python is not installed; pip install llama-cpp-python")
    return Path(spec.origin).parent / "lib"


@functools.cache
def _decoder(kind: GgmlType) -> "ctypes._NamedFuncPointer":
    try:
        function = getattr(_library(), f"dequantize_row_{kind.name.lower()}")
    except AttributeError as error:
        raise RunError(f"this llama-cpp-python cannot decode {kind.name}; install version 0.3.36 or later") from error
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    return function  # type: ignore[no-any-return]
