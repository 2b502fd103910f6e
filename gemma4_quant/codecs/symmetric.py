"""Types whose codes share a scale without a minimum, x ≈ scale · code: Q4_0 to Q8_0, IQ4_NL, FP4, ternary, binary."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks, normalised_importance
from gemma4_quant.codecs.grids import FP4, IQ4, SIGNS, Grid, uniform
from gemma4_quant.codecs.half import LARGEST, half_bits
from gemma4_quant.codecs.lanes import HUGE, LANES, Array, invert, load_tile, n_tiles, tile_at
from gemma4_quant.codecs.packing import put_half, round_to_codes
from gemma4_quant.codecs.scales import scale_error, scan_scales
from gemma4_quant.codecs.search import Search, Searches, search_for
from gemma4_quant.codecs.small_floats import E8M0, HALF, UE4M3, get_scale, put_scale, scale_near
from gemma4_quant.codecs.symmetric_blocks import pack_codes, scales_at, unpack_codes
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType, block_size


@dataclass(frozen=True)
class _Format:
    """Weights that share a scale, their codes, how the scale is stored, the largest weight it can serve."""

    n_weights: int
    grid: Grid
    searches: Searches
    scale: int = HALF
    largest: float = LARGEST


_TERNARY = {
    Effort.FAST: Search(10, 0.0, 4.0, 1, 0),
    Effort.BALANCED: Search(20, -0.2, 5.0, 2, 1),
    Effort.BEST: Search(48, -0.3, 8.0, 3, 2),
}


def _fp4(*reaches: int) -> Searches:
    """Return searches of formats with so few scales that those around the one that fits the extremum are compared."""
    efforts = (Effort.FAST, Effort.BALANCED, Effort.BEST)
    return {effort: Search(1, 0.0, 0.0, 0, reach) for effort, reach in zip(efforts, reaches, strict=True)}


FORMATS = {
    GgmlType.Q4_0: _Format(
        32,
        uniform(-8, 7),
        {
            Effort.FAST: Search(6, -1.0, 4.0, 1, 0),
            Effort.BALANCED: Search(12, -1.5, 4.0, 1, 1),
            Effort.BEST: Search(48, -1.5, 8.0, 2, 2),
        },
    ),
    GgmlType.Q5_0: _Format(
        32,
        uniform(-16, 15),
        {
            Effort.FAST: Search(6, -1.5, 4.0, 1, 0),
            Effort.BALANCED: Search(12, -2.0, 6.0, 1, 1),
            Effort.BEST: Search(48, -3.0, 12.0, 2, 2),
        },
    ),
    GgmlType.Q8_0: _Format(
        32,
        uniform(-127, 127),
        {
            Effort.FAST: Search(3, -2.0, 0.3, 0, 0),
            Effort.BALANCED: Search(5, -3.0, 0.3, 0, 0),
            Effort.BEST: Search(48, -6.0, 2.0, 2, 1),
        },
    ),
    GgmlType.IQ4_NL: _Format(
        32,
        IQ4,
        {
            Effort.FAST: Search(3, -16.0, 8.0, 1, 0),
            Effort.BALANCED: Search(7, -24.0, 16.0, 1, 1),
            Effort.BEST: Search(24, -40.0, 40.0, 2, 2),
        },
    ),
    GgmlType.MXFP4: _Format(32, FP4, _fp4(1, 2, 3), E8M0, 1e15),  # squares of larger weights would overflow the sums
    GgmlType.NVFP4: _Format(16, FP4, _fp4(4, 8, 14), UE4M3, 448.0 * 6),
    GgmlType.Q1_0: _Format(128, SIGNS, dict.fromkeys(_TERNARY, Search(1, 0.0, 0.0, 0, 1))),
    GgmlType.Q2_0: _Format(64, uniform(-1, 2), _TERNARY),
    GgmlType.TQ1_0: _Format(256, uniform(-1, 1), _TERNARY),
    GgmlType.TQ2_0: _Format(256, uniform(-1, 1), _TERNARY),
}


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec. PLAIN rounds Q8_0 as llama.cpp's converter does, and is FAST for the others."""
    form = FORMATS[kind]
    rows = checked_rows(rows, kind, form.largest)
    out = empty_blocks(rows, kind)
    if effort is Effort.PLAIN and kind is GgmlType.Q8_0:
        _round_q8_0(rows, out)
        return out
    weights = normalised_importance(importance, rows.shape[1])
    shape = (block_size(kind).n_weights // form.n_weights, form.n_weights)
    _encode(rows, weights, int(kind), shape, form.grid, form.scale, search_for(form.searches, effort), out)
    return out


@compiled(finite=True)
def _encode(
    rows: Array,
    weights: Array,
    kind: int,
    shape: tuple[int, int],
    grid: Grid,
    scale_form: int,
    search: Search,
    out: Array,
) -> None:
    """Encode; shape: scales of a block, weights that share one."""
    n_scales, size = shape
    n_weights = n_scales * size
    block_bytes = out.shape[1] // (rows.shape[1] // n_weights)
    scale_bytes = 2 if scale_form == HALF else 1
    tile = np.empty((n_scales, size, LANES), np.float32)
    work = np.empty((5, LANES), np.float32)
    scale = np.empty((n_scales, LANES), np.float32)
    inverse = np.empty((n_scales, LANES), np.float32)
    codes = np.empty(n_weights, np.int8)
    for tile_number in range(n_tiles(rows.shape, n_weights)):
        first_row, n, block = tile_at(tile_number, rows.shape, n_weights)
        first = block * n_weights
        load_tile(rows, first_row, n, first, tile.reshape(n_weights, LANES))
        for j in range(n_scales):
            w = weights[first + j * size : first + (j + 1) * size]
            scan_scales(tile[j], w, grid, search, scale[j])
            _round_scales(tile[j], w, grid, search.reach, scale_form, work, scale[j])
            invert(scale[j], inverse[j])
        for lane in range(n):
            target = out[first_row + lane, block * block_bytes : (block + 1) * block_bytes]
            for j in range(n_scales):
                row = rows[first_row + lane, first + j * size : first + (j + 1) * size]
                round_to_codes(row, inverse[j, lane], grid, codes[j * size : (j + 1) * size])
                put_scale(scale[j, lane], scale_form, target[scales_at(kind) + j * scale_bytes :])
            pack_codes(kind, codes, target)


@compiled(finite=True)
def _round_scales(tile: Array, weights: Array, grid: Grid, reach: int, form: int, work: Array, scale: Array) -> None:
    """Round scales to their format, choosing among neighbours by exact error; work: (5, LANES) float32 to use up."""
    start, tried, inverse, error, least = work[0], work[1], work[2], work[3], work[4]
    for lane in range(LANES):
        start[lane] = scale[lane]
        scale[lane] = scale_near(start[lane], 0, form)
        least[lane] = HUGE
    if reach == 0:
        return
    for k in range(-reach, reach + 1):
        for lane in range(LANES):
            tried[lane] = scale_near(start[lane], k, form)
        invert(tried, inverse)
        scale_error(tile, weights, tried, inverse, grid, error)
        for lane in range(LANES):
            better = error[lane] < least[lane]
            least[lane] = error[lane] if better else least[lane]
            scale[lane] = tried[lane] if better else scale[lane]


@compiled()
def _round_q8_0(rows: Array, out: Array) -> None:
    """Scale absmax / 127 in float32, codes rounded half away from zero: gguf.quants.Q8_0."""
    n_rows, n_columns = rows.shape
    for row in range(n_rows):
        for block in range(n_columns // 32):
            x = rows[row, block * 32 : (block + 1) * 32]
            largest = np.float32(0)
            for i in range(32):
                largest = max(largest, abs(x[i]))
            d = np.float32(largest / np.float32(127))
            inverse = np.float32(1) / d if d != np.float32(0) else np.float32(0)
            target = out[row, block * 34 :]
            put_half(half_bits(d), target)
            for i in range(32):
                scaled = np.float32(x[i] * inverse)
                # the exact fraction decides: adding 0.5 first would round 0.49999997 up
                whole = np.floor(abs(scaled))
                rounded = whole + np.float32(abs(scaled) - whole >= np.float32(0.5))
                target[2 + i] = np.uint8(np.int8(rounded if scaled >= np.float32(0) else -rounded))


def decode(kind: GgmlType, data: ByteRows, n_columns: int) -> Float32Rows:
    """Decode rows; see Codec."""
    out = np.empty((len(data), n_columns), np.float32)
    form = FORMATS[kind]
    _decode(data, int(kind), (block_size(kind).n_weights // form.n_weights, form.n_weights), form.scale, out)
    return out


@compiled()
def _decode(data: Array, kind: int, shape: tuple[int, int], scale_form: int, out: Array) -> None:
    n_scales, size = shape
    n_blocks = out.shape[1] // (n_scales * size)
    block_bytes = data.shape[1] // n_blocks
    scale_bytes = 2 if scale_form == HALF else 1
    codes = np.empty(n_scales * size, np.int8)
    for row in range(out.shape[0]):
        for block in range(n_blocks):
            source = data[row, block * block_bytes : (block + 1) * block_bytes]
            unpack_codes(kind, source, codes)
            for j in range(n_scales):
                d = get_scale(source[scales_at(kind) + j * scale_bytes :], scale_form)
                for i in range(size):
                    out[row, (block * n_scales + j) * size + i] = d * np.float32(codes[j * size + i])


CODECS = {kind: Codec(kind, partial(encode, kind), partial(decode, kind)) for kind in FORMATS}
