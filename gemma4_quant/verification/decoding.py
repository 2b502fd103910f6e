"""Decoders of every type that a GGUF file may hold, also of those that this package does not write."""

from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Rows
from gemma4_quant.codecs import CODECS
from gemma4_quant.codecs.base import Decode
from gemma4_quant.errors import UnsupportedTypeError
from gemma4_quant.ggml import GgmlType


def decoder_for(kind: GgmlType) -> Decode:
    """Return the decoder of our codec, else the gguf package's; raises UnsupportedTypeError when neither has one."""
    if kind in CODECS:
        return CODECS[kind].decode
    import gguf

    if not hasattr(gguf.GGMLQuantizationType, kind.name):
        raise UnsupportedTypeError(
            f"there is no decoder for {kind.name}; install a later version of the gguf package"
        )
    return partial(_decode_with_gguf, kind)


def _decode_with_gguf(kind: GgmlType, data: ByteRows, n_cols: int) -> Float32Rows:
    import gguf
    from gguf.quants import dequantize

    try:
        rows = dequantize(data, gguf.GGMLQuantizationType[kind.name])
    except NotImplementedError as error:
        raise UnsupportedTypeError(f"there is no decoder for {kind.name}; {error}") from error
    return np.ascontiguousarray(rows, np.float32).reshape(len(data), n_cols)
