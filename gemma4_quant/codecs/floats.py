"""F32, F16 and BF16: one rounding, no search, no importance."""

from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows
from gemma4_quant.codecs.half import LARGEST
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_LARGEST_BFLOAT16 = 3.3895313892515355e38


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec. Rounds to nearest, ties to even, as gguf.quants does."""
    del importance, effort
    limit = {GgmlType.F32: _LARGEST_FLOAT32, GgmlType.F16: LARGEST, GgmlType.BF16: _LARGEST_BFLOAT16}[kind]
    rows = checked_rows(rows, kind, limit)
    if kind is GgmlType.F32:
        return rows.view(np.uint8)
    if kind is GgmlType.F16:
        return rows.astype("<f2").view(np.uint8)
    out = np.empty(rows.shape, np.uint16)
    _to_bfloat16(rows.view(np.uint32), out)
    return out.view(np.uint8)


def decode(kind: GgmlType, data: ByteRows, n_columns: int) -> Float32Rows:
    """Decode rows; exact."""
    if kind is GgmlType.F32:
        return data.view("<f4")
    if kind is GgmlType.F16:
        return data.view("<f2").astype(np.float32)
    out = np.empty((len(data), n_columns), np.uint32)
    _from_bfloat16(data.view(np.uint16), out)
    return out.view(np.float32)


@compiled()
def _to_bfloat16(bits: Array, out: Array) -> None:
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            x = bits[row, column]
            odd = (x >> np.uint32(16)) & np.uint32(1)
            out[row, column] = np.uint16((x + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@compiled()
def _from_bfloat16(bits: Array, out: Array) -> None:
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            out[row, column] = np.uint32(bits[row, column]) << np.uint32(16)


CODECS = {
    kind: Codec(kind, partial(encode, kind), partial(decode, kind))
    for kind in (GgmlType.F32, GgmlType.F16, GgmlType.BF16)
}
