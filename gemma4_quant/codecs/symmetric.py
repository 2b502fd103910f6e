"""Q4_0, Q5_0 and Q8_0: blocks of 32 codes around zero and one float16 scale (block_q4_0 … in ggml-common.h)."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks, normalised_importance
from gemma4_quant.codecs.half import half_bits, half_step, half_value, rounded_to_half
from gemma4_quant.codecs.lanes import HUGE, LANES, Array, invert, load_tile, scale_error, scan_scales
from gemma4_quant.codecs.packing import pack_fours, pack_high_bits, put_half
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_BLOCK = 32


@dataclass(frozen=True)
class _Search:
    """Candidates and refits of scan_scales, and how many float16 neighbours of the best scale are tried exactly."""

    n_candidates: int
    first: float
    last: float
    n_refits: int
    n_neighbours: int


_CODES = {GgmlType.Q4_0: (-8, 7), GgmlType.Q5_0: (-16, 15), GgmlType.Q8_0: (-127, 127)}

_SEARCHES = {
    GgmlType.Q4_0: {
        Effort.FAST: _Search(5, -1.5, 1.0, 1, 0),
        Effort.BALANCED: _Search(9, -2.0, 1.0, 2, 1),
        Effort.BEST: _Search(32, -2.0, 1.2, 3, 2),
    },
    GgmlType.Q5_0: {
        Effort.FAST: _Search(5, -2.0, 1.0, 1, 0),
        Effort.BALANCED: _Search(9, -3.0, 1.0, 2, 1),
        Effort.BEST: _Search(32, -3.0, 1.2, 3, 2),
    },
    GgmlType.Q8_0: {
        Effort.FAST: _Search(4, -1.5, 1.0, 0, 0),
        Effort.BALANCED: _Search(16, -3.0, 2.0, 1, 0),
        Effort.BEST: _Search(48, -6.0, 2.0, 2, 1),
    },
}


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec. PLAIN rounds Q8_0 as llama.cpp's converter does, and is FAST for the others."""
    rows = checked_rows(rows, kind)
    out = empty_blocks(rows, kind)
    if effort is Effort.PLAIN and kind is GgmlType.Q8_0:
        _round_q8_0(rows, out)
        return out
    weights = normalised_importance(importance, rows.shape[1])
    search = _SEARCHES[kind][Effort.FAST if effort is Effort.PLAIN else effort]
    low, high = _CODES[kind]
    _encode(
        rows,
        weights,
        np.float32(low),
        np.float32(high),
        search.n_candidates,
        search.first,
        search.last,
        search.n_refits,
        search.n_neighbours,
        out,
    )
    return out


@compiled(finite=True)
def _encode(
    rows: Array,
    weights: Array,
    low: np.float32,
    high: np.float32,
    n_candidates: int,
    first: float,
    last: float,
    n_refits: int,
    n_neighbours: int,
    out: Array,
) -> None:
    n_rows, n_columns = rows.shape
    block_bytes = out.shape[1] // (n_columns // _BLOCK)
    tile = np.empty((_BLOCK, LANES), np.float32)
    work = np.empty((5, LANES), np.float32)
    scale = np.empty(LANES, np.float32)
    codes = np.empty((_BLOCK, LANES), np.int16)
    for first_row in range(0, n_rows, LANES):
        n = min(LANES, n_rows - first_row)
        for block in range(n_columns // _BLOCK):
            column = block * _BLOCK
            w = weights[column : column + _BLOCK]
            load_tile(rows, first_row, n, column, tile)
            scan_scales(tile, w, low, high, n_candidates, first, last, n_refits, work, scale)
            _round_scales(tile, w, low, high, n_neighbours, work, scale)
            invert(scale, work[0])
            for i in range(_BLOCK):
                for lane in range(LANES):
                    codes[i, lane] = np.int16(min(max(np.rint(tile[i, lane] * work[0, lane]), low), high))
            _pack(codes, scale, n, int(high), first_row, block * block_bytes, out)


@compiled(finite=True)
def _round_scales(
    tile: Array, weights: Array, low: np.float32, high: np.float32, n_neighbours: int, work: Array, scale: Array
) -> None:
    """Round scales to float16, choosing among neighbours by exact error; work: (5, LANES) float32 to use up."""
    start, tried, inverse, error, least = work[0], work[1], work[2], work[3], work[4]
    for lane in range(LANES):
        start[lane] = rounded_to_half(scale[lane])
        scale[lane] = start[lane]
        least[lane] = HUGE
    if n_neighbours == 0:
        return
    for k in range(-n_neighbours, n_neighbours + 1):
        for lane in range(LANES):
            tried[lane] = half_step(start[lane], k)
        invert(tried, inverse)
        scale_error(tile, weights, tried, inverse, low, high, error)
        for lane in range(LANES):
            better = error[lane] < least[lane]
            least[lane] = error[lane] if better else least[lane]
            scale[lane] = tried[lane] if better else scale[lane]


@compiled()
def _pack(codes: Array, scale: Array, n: int, high: int, first_row: int, at: int, out: Array) -> None:
    for lane in range(n):
        block = out[first_row + lane, at:]
        put_half(half_bits(scale[lane]), block)
        if high == 127:
            for i in range(_BLOCK):
                block[2 + i] = np.uint8(np.int8(codes[i, lane]))
        elif high == 15:
            pack_high_bits(codes, lane, 16, block[2:])
            pack_fours(codes, lane, 16, block[6:])
        else:
            pack_fours(codes, lane, 8, block[2:])


@compiled()
def _round_q8_0(rows: Array, out: Array) -> None:
    """Scale absmax / 127 in float32, codes rounded half away from zero: gguf.quants.Q8_0."""
    n_rows, n_columns = rows.shape
    for row in range(n_rows):
        for block in range(n_columns // _BLOCK):
            x = rows[row, block * _BLOCK : (block + 1) * _BLOCK]
            largest = np.float32(0)
            for i in range(_BLOCK):
                largest = max(largest, abs(x[i]))
            d = np.float32(largest / np.float32(127))
            inverse = np.float32(1) / d if d != np.float32(0) else np.float32(0)
            target = out[row, block * 34 :]
            put_half(half_bits(d), target)
            for i in range(_BLOCK):
                scaled = np.float32(x[i] * inverse)
                # the exact fraction decides: adding 0.5 first would round 0.49999997 up
                whole = np.floor(abs(scaled))
                rounded = whole + np.float32(abs(scaled) - whole >= np.float32(0.5))
                target[2 + i] = np.uint8(np.int8(rounded if scaled >= np.float32(0) else -rounded))


def decode(kind: GgmlType, data: ByteRows, n_columns: int) -> Float32Rows:
    """Decode rows; see Codec."""
    out = np.empty((len(data), n_columns), np.float32)
    _decode(data, _CODES[kind][1], out)
    return out


@compiled()
def _decode(data: Array, high: int, out: Array) -> None:
    n_rows, n_columns = out.shape
    block_bytes = data.shape[1] // (n_columns // _BLOCK)
    for row in range(n_rows):
        for block in range(n_columns // _BLOCK):
            source = data[row, block * block_bytes : (block + 1) * block_bytes]
            d = half_value(np.uint16(source[0]) | (np.uint16(source[1]) << np.uint16(8)))
            target = out[row, block * _BLOCK : (block + 1) * _BLOCK]
            for i in range(_BLOCK):
                if high == 127:
                    code = np.int32(np.int8(source[2 + i]))
                else:
                    codes = source[block_bytes - 16 :]
                    code = np.int32(codes[i] & 15) if i < 16 else np.int32(codes[i - 16] >> 4)
                    if high == 15:
                        code += np.int32((source[2 + i // 8] >> (i % 8)) & 1) * 16
                    code -= high + 1
                target[i] = d * np.float32(code)


CODECS = {kind: Codec(kind, partial(encode, kind), partial(decode, kind)) for kind in _CODES}
