"""The codebook types IQ1, IQ2 and IQ3, by ggml's own quantizers.

Their codes are points of lattices that ggml keeps in tables of its own, searched with neighbour lists that it builds
when first used. ggml weighs an error by importance · √(mean square of the block + x²).
"""

from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows, normalised_importance
from gemma4_quant.codecs.ggml_library import dequantize_rows, quantize_rows
from gemma4_quant.ggml import GgmlType

_KINDS = (
    GgmlType.IQ1_S,
    GgmlType.IQ1_M,
    GgmlType.IQ2_XXS,
    GgmlType.IQ2_XS,
    GgmlType.IQ2_S,
    GgmlType.IQ3_XXS,
    GgmlType.IQ3_S,
)

_NEGLIGIBLE = np.float32(2.0**-26)
"""Below a quarter of the least float16: no scale can express such weights, and products of their squares vanish."""


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec. ggml searches in one way only, whatever the effort."""
    del effort
    rows = checked_rows(rows, kind)
    weights = normalised_importance(importance, rows.shape[1])
    rows = np.where(np.abs(rows) < _NEGLIGIBLE, np.float32(0), rows)
    return quantize_rows(kind, rows, weights)


def decode(kind: GgmlType, data: ByteRows, n_columns: int) -> Float32Rows:
    """Decode rows; see Codec."""
    return dequantize_rows(kind, data, n_columns)


CODECS = {kind: Codec(kind, partial(encode, kind), partial(decode, kind)) for kind in _KINDS}
