"""Which GGUF type llama.cpp's converter gives each tensor (conversion/base.py, prepare_tensors)."""

import re

from gemma4_quant.ggml import GgmlType, block_size
from gemma4_quant.model import Model

_ALWAYS_FLOAT32 = re.compile(
    r"blk\.\d+\.ffn_gate_inp\.weight"  # routers
    r"|v\.position_embd\.weight"
    r"|a\.(?:conv1d\.\d+|input_projection|blk\.\d+\.conv_dw)\.weight"  # what subsamples and convolves sound
)

_PATCHES = "v.patch_embd.weight"  # ggml's convolution takes F32 or F16 kernels only


def float_type(tensor_name: str, shape: tuple[int, ...], out_type: GgmlType) -> GgmlType:
    """Return the type of a tensor in a file converted to `out_type` (F32, F16, BF16 or Q8_0).

    shape: numpy order. Norms, vectors, routers, convolutions and what is not a weight stay F32; rows that are not
    whole blocks become F16.
    """
    if len(shape) <= 1 or tensor_name.endswith("_norm.weight"):
        return GgmlType.F32
    if not tensor_name.endswith((".weight", ".lora_a", ".lora_b")) or _ALWAYS_FLOAT32.fullmatch(tensor_name):
        return GgmlType.F32
    if tensor_name == _PATCHES:
        return GgmlType.F16 if out_type is GgmlType.F16 else GgmlType.F32
    return GgmlType.F16 if shape[-1] % block_size(out_type).n_weights else out_type


def auto_type(model: Model, otherwise: GgmlType = GgmlType.F16) -> GgmlType:
    """Return the output type for `--outtype auto`: the 16-bit type of the first matrix in 16 bits.

    model: as converted from a checkpoint, tensors in the types they are stored in. otherwise: when there is none.
    """
    for tensor in model.tensors:
        if len(tensor.shape) > 1 and tensor.type in (GgmlType.BF16, GgmlType.F16):
            return tensor.type
    return otherwise
