"""Q4_1 and Q5_1: blocks of 32 codes from zero up, with a scale and a minimum in float16 (block_q4_1, block_q5_1)."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks, normalised_importance
from gemma4_quant.codecs.half import LARGEST, half_bits, half_step, half_value, rounded_to_half
from gemma4_quant.codecs.lanes import HUGE, LANES, Array, invert, load_tile, offset_error, scan_offsets
from gemma4_quant.codecs.packing import pack_fours, pack_high_bits, put_half
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_BLOCK = 32


@dataclass(frozen=True)
class _Search:
    """Candidates and refits of scan_offsets, and how many float16 neighbours of the scale are tried exactly."""

    n_candidates: int
    first: float
    last: float
    n_refits: int
    n_neighbours: int


_HIGHEST = {GgmlType.Q4_1: 15, GgmlType.Q5_1: 31}

_SEARCHES = {
    Effort.FAST: _Search(5, -1.5, 0.5, 1, 0),
    Effort.BALANCED: _Search(12, -3.0, 0.9, 2, 1),
    Effort.BEST: _Search(32, -4.0, 1.0, 3, 2),
}


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec."""
    rows = checked_rows(rows, kind, LARGEST / 2)  # half, since the scale spans from the least to the largest
    out = empty_blocks(rows, kind)
    weights = normalised_importance(importance, rows.shape[1])
    search = _SEARCHES[Effort.FAST if effort is Effort.PLAIN else effort]
    _encode(
        rows,
        weights,
        np.float32(_HIGHEST[kind]),
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
    work = np.empty((10, LANES), np.float32)
    scale = np.empty(LANES, np.float32)
    offset = np.empty(LANES, np.float32)
    codes = np.empty((_BLOCK, LANES), np.int16)
    for first_row in range(0, n_rows, LANES):
        n = min(LANES, n_rows - first_row)
        for block in range(n_columns // _BLOCK):
            column = block * _BLOCK
            w = weights[column : column + _BLOCK]
            load_tile(rows, first_row, n, column, tile)
            sum_w = scan_offsets(tile, w, high, False, n_candidates, first, last, n_refits, work, scale, offset)
            _round_pairs(tile, w, sum_w, high, n_neighbours, work, scale, offset)
            invert(scale, work[0])
            for i in range(_BLOCK):
                for lane in range(LANES):
                    code = np.rint((tile[i, lane] + offset[lane]) * work[0, lane])
                    codes[i, lane] = np.int16(min(max(code, np.float32(0)), high))
            _pack(codes, scale, offset, n, int(high), first_row, block * block_bytes, out)


@compiled(finite=True)
def _round_pairs(
    tile: Array,
    weights: Array,
    sum_w: np.float32,
    high: np.float32,
    n_neighbours: int,
    work: Array,
    scale: Array,
    offset: Array,
) -> None:
    """Round scale and offset to float16: for the scale and its neighbours, the offset that fits the codes again.

    work: as scan_offsets left it; rows 4 (Σ w·l) and 7 (Σ w·x) are used, the others overwritten.
    """
    inverse, tried, moved, error, least, start = work[0], work[1], work[2], work[3], work[8], work[9]
    sum_l, sum_x = work[4], work[7]
    for lane in range(LANES):
        start[lane] = rounded_to_half(scale[lane])
        least[lane] = HUGE
    for k in range(-n_neighbours, n_neighbours + 1):
        for lane in range(LANES):
            tried[lane] = half_step(start[lane], k)
            moved[lane] = rounded_to_half((tried[lane] * sum_l[lane] - sum_x[lane]) / sum_w)
        invert(tried, inverse)
        offset_error(tile, weights, tried, inverse, moved, high, error)
        for lane in range(LANES):
            better = error[lane] < least[lane]
            least[lane] = error[lane] if better else least[lane]
            scale[lane] = tried[lane] if better else scale[lane]
            offset[lane] = moved[lane] if better else offset[lane]


@compiled()
def _pack(codes: Array, scale: Array, offset: Array, n: int, high: int, first_row: int, at: int, out: Array) -> None:
    for lane in range(n):
        block = out[first_row + lane, at:]
        put_half(half_bits(scale[lane]), block)
        put_half(half_bits(-offset[lane]), block[2:])
        if high == 31:
            pack_high_bits(codes, lane, 0, block[4:])
            pack_fours(codes, lane, 0, block[8:])
        else:
            pack_fours(codes, lane, 0, block[4:])


def decode(kind: GgmlType, data: ByteRows, n_columns: int) -> Float32Rows:
    """Decode rows; see Codec."""
    out = np.empty((len(data), n_columns), np.float32)
    _decode(data, _HIGHEST[kind], out)
    return out


@compiled()
def _decode(data: Array, high: int, out: Array) -> None:
    n_rows, n_columns = out.shape
    block_bytes = data.shape[1] // (n_columns // _BLOCK)
    for row in range(n_rows):
        for block in range(n_columns // _BLOCK):
            source = data[row, block * block_bytes : (block + 1) * block_bytes]
            d = half_value(np.uint16(source[0]) | (np.uint16(source[1]) << np.uint16(8)))
            m = half_value(np.uint16(source[2]) | (np.uint16(source[3]) << np.uint16(8)))
            codes = source[block_bytes - 16 :]
            target = out[row, block * _BLOCK : (block + 1) * _BLOCK]
            for i in range(_BLOCK):
                code = np.int32(codes[i] & 15) if i < 16 else np.int32(codes[i - 16] >> 4)
                if high == 31:
                    code += np.int32((source[4 + i // 8] >> (i % 8)) & 1) * 16
                target[i] = np.float32(d * np.float32(code)) + m


CODECS = {kind: Codec(kind, partial(encode, kind), partial(decode, kind)) for kind in _HIGHEST}
