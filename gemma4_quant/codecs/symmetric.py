"""Q4_0, Q5_0 and Q8_0: blocks of 32 codes around zero and one float16 scale (block_q4_0 … in ggml-common.h)."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks, normalised_importance
from gemma4_quant.codecs.grids import Grid, uniform
from gemma4_quant.codecs.half import half_bits, half_step, rounded_to_half
from gemma4_quant.codecs.lanes import HUGE, LANES, Array, invert, load_tile, tiles
from gemma4_quant.codecs.packing import (
    add_fifths,
    get_half,
    pack_fifths,
    pack_fours,
    put_half,
    round_to_codes,
    unpack_fours,
)
from gemma4_quant.codecs.scales import scale_error, scan_scales
from gemma4_quant.codecs.search import Search, Searches, search_for
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_BLOCK = 32
_Q5_0, _Q8_0 = int(GgmlType.Q5_0), int(GgmlType.Q8_0)


@dataclass(frozen=True)
class _Format:
    grid: Grid
    searches: Searches


FORMATS = {
    GgmlType.Q4_0: _Format(
        uniform(-8, 7),
        {
            Effort.FAST: Search(5, -1.5, 1.0, 1, 0),
            Effort.BALANCED: Search(9, -2.0, 1.0, 2, 1),
            Effort.BEST: Search(32, -2.0, 1.2, 3, 2),
        },
    ),
    GgmlType.Q5_0: _Format(
        uniform(-16, 15),
        {
            Effort.FAST: Search(5, -2.0, 1.0, 1, 0),
            Effort.BALANCED: Search(9, -3.0, 1.0, 2, 1),
            Effort.BEST: Search(32, -3.0, 1.2, 3, 2),
        },
    ),
    GgmlType.Q8_0: _Format(
        uniform(-127, 127),
        {
            Effort.FAST: Search(4, -1.5, 1.0, 0, 0),
            Effort.BALANCED: Search(16, -3.0, 2.0, 1, 0),
            Effort.BEST: Search(48, -6.0, 2.0, 2, 1),
        },
    ),
}


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec. PLAIN rounds Q8_0 as llama.cpp's converter does, and is FAST for the others."""
    rows = checked_rows(rows, kind)
    out = empty_blocks(rows, kind)
    if effort is Effort.PLAIN and kind is GgmlType.Q8_0:
        _round_q8_0(rows, out)
        return out
    weights = normalised_importance(importance, rows.shape[1])
    form = FORMATS[kind]
    _encode(rows, weights, int(kind), form.grid, search_for(form.searches, effort), out)
    return out


@compiled(finite=True)
def _encode(rows: Array, weights: Array, kind: int, grid: Grid, search: Search, out: Array) -> None:
    n_blocks = rows.shape[1] // _BLOCK
    block_bytes = out.shape[1] // n_blocks
    tile = np.empty((_BLOCK, LANES), np.float32)
    work = np.empty((5, LANES), np.float32)
    scale = np.empty(LANES, np.float32)
    inverse = np.empty(LANES, np.float32)
    codes = np.empty(_BLOCK, np.int8)
    for first_row, n, block in tiles(rows.shape[0], rows.shape[1], _BLOCK):
        columns = slice(block * _BLOCK, (block + 1) * _BLOCK)
        load_tile(rows, first_row, n, columns.start, tile)
        scan_scales(tile, weights[columns], grid, search, work, scale)
        _round_scales(tile, weights[columns], grid, search.reach, work, scale)
        invert(scale, inverse)
        for lane in range(n):
            round_to_codes(rows[first_row + lane, columns], inverse[lane], grid, codes)
            target = out[first_row + lane, block * block_bytes : (block + 1) * block_bytes]
            put_half(half_bits(scale[lane]), target)
            _pack(kind, codes, target)


@compiled(finite=True)
def _round_scales(tile: Array, weights: Array, grid: Grid, reach: int, work: Array, scale: Array) -> None:
    """Round scales to float16, choosing among neighbours by exact error; work: (5, LANES) float32 to use up."""
    start, tried, inverse, error, least = work[0], work[1], work[2], work[3], work[4]
    for lane in range(LANES):
        start[lane] = rounded_to_half(scale[lane])
        scale[lane] = start[lane]
        least[lane] = HUGE
    if reach == 0:
        return
    for k in range(-reach, reach + 1):
        for lane in range(LANES):
            tried[lane] = half_step(start[lane], k)
        invert(tried, inverse)
        scale_error(tile, weights, tried, inverse, grid, error)
        for lane in range(LANES):
            better = error[lane] < least[lane]
            least[lane] = error[lane] if better else least[lane]
            scale[lane] = tried[lane] if better else scale[lane]


@compiled()
def _pack(kind: int, codes: Array, block: Array) -> None:
    if kind == _Q8_0:
        for i in range(_BLOCK):
            block[2 + i] = np.uint8(codes[i])
    elif kind == _Q5_0:
        pack_fifths(codes, 16, block[2:])
        pack_fours(codes, 16, block[6:])
    else:
        pack_fours(codes, 8, block[2:])


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
    _decode(data, int(kind), out)
    return out


@compiled()
def _decode(data: Array, kind: int, out: Array) -> None:
    n_rows, n_columns = out.shape
    block_bytes = data.shape[1] // (n_columns // _BLOCK)
    codes = np.empty(_BLOCK, np.int8)
    for row in range(n_rows):
        for block in range(n_columns // _BLOCK):
            source = data[row, block * block_bytes : (block + 1) * block_bytes]
            d = get_half(source)
            zero = np.int32(0)
            if kind == _Q8_0:
                for i in range(_BLOCK):
                    codes[i] = np.int8(source[2 + i])
            elif kind == _Q5_0:
                unpack_fours(source[6:], codes)
                add_fifths(source[2:], codes)
                zero = np.int32(16)
            else:
                unpack_fours(source[2:], codes)
                zero = np.int32(8)
            for i in range(_BLOCK):
                out[row, block * _BLOCK + i] = d * np.float32(np.int32(codes[i]) - zero)


CODECS = {kind: Codec(kind, partial(encode, kind), partial(decode, kind)) for kind in FORMATS}
