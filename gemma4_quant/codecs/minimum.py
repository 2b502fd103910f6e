"""Q4_1 and Q5_1: blocks of 32 codes from zero up, with a scale and a minimum in float16 (block_q4_1, block_q5_1)."""

from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks, normalised_importance
from gemma4_quant.codecs.half import LARGEST, half_bits, half_step, rounded_to_half
from gemma4_quant.codecs.lanes import HUGE, LANES, Array, invert, load_tile, n_tiles, tile_at
from gemma4_quant.codecs.offsets import offset_error, round_above, scan_offsets
from gemma4_quant.codecs.packing import add_bits, get_half, pack_bits, pack_fours, put_half, unpack_fours
from gemma4_quant.codecs.search import Search, search_for
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_BLOCK = 32
_FIVE_BIT_BYTES = 24
HIGHEST = {GgmlType.Q4_1: 15, GgmlType.Q5_1: 31}

_SEARCHES = {
    Effort.FAST: Search(6, -1.5, 1.5, 1, 0),
    Effort.BALANCED: Search(24, -2.0, 3.0, 1, 1),
    Effort.BEST: Search(60, -2.0, 4.0, 2, 2),
}


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec."""
    rows = checked_rows(rows, kind, LARGEST / 2)  # half, since the scale spans from the least to the largest
    out = empty_blocks(rows, kind)
    weights = normalised_importance(importance, rows.shape[1])
    _encode(rows, weights, np.float32(HIGHEST[kind]), search_for(_SEARCHES, effort), out)
    return out


@compiled(finite=True)
def _encode(rows: Array, weights: Array, high: np.float32, search: Search, out: Array) -> None:
    block_bytes = out.shape[1] // (rows.shape[1] // _BLOCK)
    tile = np.empty((_BLOCK, LANES), np.float32)
    work = np.empty((10, LANES), np.float32)
    scale = np.empty(LANES, np.float32)
    offset = np.empty(LANES, np.float32)
    inverse = np.empty(LANES, np.float32)
    codes = np.empty(_BLOCK, np.int8)
    for tile_number in range(n_tiles(rows.shape, _BLOCK)):
        first_row, n, block = tile_at(tile_number, rows.shape, _BLOCK)
        columns = slice(block * _BLOCK, (block + 1) * _BLOCK)
        load_tile(rows, first_row, n, columns.start, tile)
        sum_w = scan_offsets(tile, weights[columns], high, False, search, work, scale, offset)
        _round_pairs(tile, weights[columns], sum_w, high, search.reach, work, scale, offset)
        invert(scale, inverse)
        for lane in range(n):
            round_above(rows[first_row + lane, columns], inverse[lane], offset[lane], high, codes)
            target = out[first_row + lane, block * block_bytes : (block + 1) * block_bytes]
            put_half(half_bits(scale[lane]), target)
            put_half(half_bits(-offset[lane]), target[2:])
            pack_codes(codes, target)


@compiled()
def pack_codes(codes: Array, block: Array) -> None:
    """Write the codes of one block; a block of 24 bytes has fifth bits."""
    n_bytes = block.shape[0]
    pack_fours(codes, 0, block[n_bytes - 16 :])
    if n_bytes == _FIVE_BIT_BYTES:
        pack_bits(codes, 0, 4, block[4:])


@compiled()
def unpack_codes(block: Array, codes: Array) -> None:
    """Read what pack_codes wrote."""
    n_bytes = block.shape[0]
    unpack_fours(block[n_bytes - 16 :], 0, codes)
    if n_bytes == _FIVE_BIT_BYTES:
        add_bits(block[4:], 4, codes)


@compiled(finite=True)
def _round_pairs(
    tile: Array,
    weights: Array,
    sum_w: np.float32,
    high: np.float32,
    reach: int,
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
    for k in range(-reach, reach + 1):
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


def decode(data: ByteRows, n_columns: int) -> Float32Rows:
    """Decode rows; see Codec."""
    out = np.empty((len(data), n_columns), np.float32)
    _decode(data, out)
    return out


@compiled()
def _decode(data: Array, out: Array) -> None:
    n_rows, n_columns = out.shape
    block_bytes = data.shape[1] // (n_columns // _BLOCK)
    codes = np.empty(_BLOCK, np.int8)
    for row in range(n_rows):
        for block in range(n_columns // _BLOCK):
            source = data[row, block * block_bytes : (block + 1) * block_bytes]
            d, m = get_half(source), get_half(source[2:])
            unpack_codes(source, codes)
            for i in range(_BLOCK):
                out[row, block * _BLOCK + i] = np.float32(d * np.float32(codes[i])) + m


CODECS = {kind: Codec(kind, partial(encode, kind), decode) for kind in HIGHEST}
