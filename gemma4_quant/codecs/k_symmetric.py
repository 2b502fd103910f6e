"""Q3_K, Q6_K and IQ4_XS: super-blocks of 256 weights, a float16 scale times whole sub-scales, x ≈ d·s·code.

Search of a super-block: the best real scale of each sub-block (scan_scales); float16 super-scales compared by how
far they force the sub-scales from their best; sub-scales by exact error; the super-scale fitted again to the codes.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks, normalised_importance
from gemma4_quant.codecs.grids import IQ4, Grid, Uniform, uniform
from gemma4_quant.codecs.half import half_bits, rounded_to_half, usable_half
from gemma4_quant.codecs.k_blocks import pack_symmetric, super_scale_at, unpack_symmetric
from gemma4_quant.codecs.lanes import HUGE, LANES, Array, extremum, invert, load_tile, n_tiles, tile_at
from gemma4_quant.codecs.packing import get_half, put_half, round_to_codes
from gemma4_quant.codecs.scales import scale_error, scale_sums, scan_scales
from gemma4_quant.codecs.search import Search, Searches, search_for
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_SUPER = 256


@dataclass(frozen=True)
class _Format:
    """Weights of a sub-block, its codes, the range of its sub-scale."""

    n_weights: int
    grid: Grid
    sub_scales: Uniform
    searches: Searches


FORMATS = {
    GgmlType.Q3_K: _Format(
        16,
        uniform(-4, 3),
        uniform(-32, 31),
        {
            Effort.FAST: Search(6, -1.0, 3.0, 1, 0, n_supers=5, n_rounds=1),
            Effort.BALANCED: Search(15, -1.0, 5.0, 1, 1, n_supers=9, n_rounds=2),
            Effort.BEST: Search(32, -1.2, 6.0, 2, 2, n_supers=9, n_rounds=4),
        },
    ),
    GgmlType.IQ4_XS: _Format(
        32,
        IQ4,
        uniform(-32, 31),
        {
            Effort.FAST: Search(3, -16.0, 8.0, 1, 0, n_supers=5, n_rounds=1),
            Effort.BALANCED: Search(6, -20.0, 16.0, 0, 1, n_supers=5, n_rounds=1),
            Effort.BEST: Search(20, -32.0, 40.0, 2, 2, n_supers=9, n_rounds=3),
        },
    ),
    GgmlType.Q6_K: _Format(
        16,
        uniform(-32, 31),
        uniform(-128, 127),
        {
            Effort.FAST: Search(4, -1.0, 1.0, 1, 0, n_supers=3, n_rounds=2),
            Effort.BALANCED: Search(10, -3.0, 1.0, 1, 1, n_supers=5, n_rounds=2),
            Effort.BEST: Search(24, -5.0, 1.0, 1, 1, n_supers=9, n_rounds=3),
        },
    ),
}


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec."""
    rows = checked_rows(rows, kind)
    out = empty_blocks(rows, kind)
    weights = normalised_importance(importance, rows.shape[1])
    form = FORMATS[kind]
    _encode(
        rows, weights, int(kind), form.n_weights, form.grid, form.sub_scales, search_for(form.searches, effort), out
    )
    return out


@compiled(finite=True)
def _encode(
    rows: Array, weights: Array, kind: int, size: int, grid: Grid, sub_scales: Uniform, search: Search, out: Array
) -> None:
    n_sub = _SUPER // size
    block_bytes = out.shape[1] // (rows.shape[1] // _SUPER)
    tile = np.empty((n_sub, size, LANES), np.float32)
    work = np.empty((5, LANES), np.float32)
    scale = np.empty((n_sub, LANES), np.float32)
    curvature = np.empty((n_sub, LANES), np.float32)
    super_scale = np.empty(LANES, np.float32)
    sub_scale = np.empty((n_sub, LANES), np.float32)
    inverse = np.empty((n_sub, LANES), np.float32)
    codes = np.empty(_SUPER, np.int8)
    for tile_number in range(n_tiles(rows.shape, _SUPER)):
        first_row, n, block = tile_at(tile_number, rows.shape, _SUPER)
        first = block * _SUPER
        w = weights[first : first + _SUPER]
        load_tile(rows, first_row, n, first, tile.reshape(_SUPER, LANES))
        for j in range(n_sub):
            wj = w[j * size : (j + 1) * size]
            scan_scales(tile[j], wj, grid, search, scale[j])
            invert(scale[j], work[0])
            scale_sums(tile[j], wj, work[0], grid, curvature[j], work[1])
        _choose_super_scale(scale, curvature, sub_scales, search.n_supers, super_scale)
        _settle(tile, w, grid, sub_scales, search, scale, super_scale, sub_scale, work)
        for j in range(n_sub):
            for lane in range(LANES):
                scale[j, lane] = super_scale[lane] * sub_scale[j, lane]
            invert(scale[j], inverse[j])
        for lane in range(n):
            for j in range(n_sub):
                row = rows[first_row + lane, first + j * size : first + (j + 1) * size]
                round_to_codes(row, inverse[j, lane], grid, codes[j * size : (j + 1) * size])
            target = out[first_row + lane, block * block_bytes : (block + 1) * block_bytes]
            pack_symmetric(kind, codes, sub_scale[:, lane], target)
            put_half(half_bits(super_scale[lane]), target[super_scale_at(kind) :])


@compiled(finite=True)
def _choose_super_scale(scale: Array, curvature: Array, sub_scales: Uniform, n_supers: int, chosen: Array) -> None:
    """Choose a float16 super-scale; the largest sub-scale goes to low + k / 2, the end with more room."""
    top = np.empty(LANES, np.float32)
    tried = np.empty(LANES, np.float32)
    inverse = np.empty(LANES, np.float32)
    cost = np.empty(LANES, np.float32)
    least = np.full(LANES, HUGE, np.float32)
    extremum(scale, top)
    for k in range(n_supers):
        for lane in range(LANES):
            tried[lane] = usable_half(top[lane] / (sub_scales.low + np.float32(0.5) * np.float32(k)))
            cost[lane] = np.float32(0)
        invert(tried, inverse)
        for j in range(scale.shape[0]):
            for lane in range(LANES):
                s = min(max(np.rint(scale[j, lane] * inverse[lane]), sub_scales.low), sub_scales.high)
                off = tried[lane] * s - scale[j, lane]
                cost[lane] += off * off * curvature[j, lane]
        for lane in range(LANES):
            better = cost[lane] < least[lane]
            least[lane] = cost[lane] if better else least[lane]
            chosen[lane] = tried[lane] if better else chosen[lane]


@compiled(finite=True)
def _settle(
    tile: Array,
    weights: Array,
    grid: Grid,
    sub_scales: Uniform,
    search: Search,
    scale: Array,
    super_scale: Array,
    sub_scale: Array,
    work: Array,
) -> None:
    """Settle sub-scales by exact error and the super-scale by least squares, in turn; keep the best of all rounds.

    scale (n_sub, LANES): best real scales on entry, used up. super_scale, sub_scale: the result.
    """
    n_sub, size = tile.shape[0], tile.shape[1]
    tried, a, inverse, error = work[0], work[1], work[2], work[3]
    least = np.empty((n_sub, LANES), np.float32)
    chosen = np.empty((n_sub, LANES), np.float32)
    d = super_scale.copy()
    per_d = np.empty(LANES, np.float32)
    total_least = np.full(LANES, HUGE, np.float32)
    for turn in range(search.n_rounds):
        invert(d, per_d)
        for j in range(n_sub):
            w = weights[j * size : (j + 1) * size]
            for lane in range(LANES):
                least[j, lane] = HUGE
            for k in range(-search.reach, search.reach + 1):
                for lane in range(LANES):
                    tried[lane] = min(
                        max(np.rint(scale[j, lane] * per_d[lane]) + np.float32(k), sub_scales.low), sub_scales.high
                    )
                    a[lane] = d[lane] * tried[lane]
                invert(a, inverse)
                scale_error(tile[j], w, a, inverse, grid, error)
                for lane in range(LANES):
                    better = error[lane] < least[j, lane]
                    least[j, lane] = error[lane] if better else least[j, lane]
                    chosen[j, lane] = tried[lane] if better else chosen[j, lane]
        for lane in range(LANES):
            total = np.float32(0)
            for j in range(n_sub):
                total += least[j, lane]
            if total < total_least[lane]:
                total_least[lane] = total
                super_scale[lane] = d[lane]
                for j in range(n_sub):
                    sub_scale[j, lane] = chosen[j, lane]
        if turn < search.n_rounds - 1:
            _refit_super_scale(tile, weights, grid, scale, d, chosen, work)


@compiled(finite=True)
def _refit_super_scale(
    tile: Array,
    weights: Array,
    grid: Grid,
    scale: Array,
    super_scale: Array,
    sub_scale: Array,
    work: Array,
) -> None:
    """Fit the super-scale to all codes and round it to float16; scale becomes the products it was fitted from."""
    inverse, ll, xl, numerator, denominator = work[0], work[1], work[2], work[3], work[4]
    n_sub, size = tile.shape[0], tile.shape[1]
    for lane in range(LANES):
        numerator[lane] = np.float32(0)
        denominator[lane] = np.float32(0)
    for j in range(n_sub):
        for lane in range(LANES):
            scale[j, lane] = super_scale[lane] * sub_scale[j, lane]
        invert(scale[j], inverse)
        scale_sums(tile[j], weights[j * size : (j + 1) * size], inverse, grid, ll, xl)
        for lane in range(LANES):
            numerator[lane] += sub_scale[j, lane] * xl[lane]
            denominator[lane] += sub_scale[j, lane] * sub_scale[j, lane] * ll[lane]
    for lane in range(LANES):
        divisor = denominator[lane] if denominator[lane] > np.float32(0) else np.float32(1)
        fitted = rounded_to_half(numerator[lane] / divisor)
        super_scale[lane] = fitted if fitted != np.float32(0) else super_scale[lane]


def decode(kind: GgmlType, data: ByteRows, n_columns: int) -> Float32Rows:
    """Decode rows; see Codec."""
    out = np.empty((len(data), n_columns), np.float32)
    _decode(data, int(kind), FORMATS[kind].n_weights, out)
    return out


@compiled()
def _decode(data: Array, kind: int, size: int, out: Array) -> None:
    n_blocks = out.shape[1] // _SUPER
    block_bytes = data.shape[1] // n_blocks
    codes = np.empty(_SUPER, np.int8)
    sub_scales = np.empty(_SUPER // size, np.float32)
    for row in range(out.shape[0]):
        for block in range(n_blocks):
            source = data[row, block * block_bytes : (block + 1) * block_bytes]
            unpack_symmetric(kind, source, codes, sub_scales)
            d = get_half(source[super_scale_at(kind) :])
            for j in range(_SUPER // size):
                a = np.float32(d * sub_scales[j])
                for i in range(j * size, (j + 1) * size):
                    out[row, block * _SUPER + i] = a * np.float32(codes[i])


CODECS = {kind: Codec(kind, partial(encode, kind), partial(decode, kind)) for kind in FORMATS}
