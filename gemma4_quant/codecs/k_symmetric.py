"""Q6_K: super-blocks of 256 weights, a float16 scale times sixteen int8 sub-scales (block_q6_K in ggml-common.h).

Search of a super-block: the best real scale of each sub-block (scan_scales); float16 super-scales compared by how
far they force the sub-scales from their best; sub-scales by exact error; the super-scale fitted again to the codes.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks, normalised_importance
from gemma4_quant.codecs.grids import Grid, Uniform, uniform
from gemma4_quant.codecs.half import half_bits, rounded_to_half
from gemma4_quant.codecs.lanes import HUGE, LANES, Array, invert, load_tile, n_tiles, tile_at
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
    GgmlType.Q6_K: _Format(
        16,
        uniform(-32, 31),
        uniform(-128, 127),
        {
            Effort.FAST: Search(4, -1.0, 1.0, 1, 0, n_supers=3, n_rounds=2),
            Effort.BALANCED: Search(10, -3.0, 1.0, 1, 1, n_supers=5, n_rounds=2),
            Effort.BEST: Search(24, -5.0, 1.0, 1, 1, n_supers=9, n_rounds=3),
        },
    )
}


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec."""
    rows = checked_rows(rows, kind)
    out = empty_blocks(rows, kind)
    weights = normalised_importance(importance, rows.shape[1])
    form = FORMATS[kind]
    _encode(rows, weights, form.n_weights, form.grid, form.sub_scales, search_for(form.searches, effort), out)
    return out


@compiled(finite=True)
def _encode(
    rows: Array, weights: Array, size: int, grid: Grid, sub_scales: Uniform, search: Search, out: Array
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
            scan_scales(tile[j], wj, grid, search, work, scale[j])
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
            _pack_q6_k(codes, sub_scale[:, lane], target)
            put_half(half_bits(super_scale[lane]), target[208:])


@compiled(finite=True)
def _choose_super_scale(
    scale: Array, curvature: Array, sub_scales: Uniform, n_supers: int, super_scale: Array
) -> None:
    """Choose a float16 super-scale; the largest sub-scale goes to scale_low + k / 2, the end with more room."""
    n_sub = scale.shape[0]
    scale_low, scale_high = sub_scales.low, sub_scales.high
    for lane in range(LANES):
        top = np.float32(0)
        for j in range(n_sub):
            top = scale[j, lane] if abs(scale[j, lane]) > abs(top) else top
        least = HUGE
        chosen = np.float32(0)
        for k in range(n_supers):
            d = rounded_to_half(top / (scale_low + np.float32(0.5) * np.float32(k)))
            if d == np.float32(0) and top != np.float32(0):
                d = np.float32(2.0**-24) if top < np.float32(0) else np.float32(-(2.0**-24))
            if d != np.float32(0):
                cost = np.float32(0)
                for j in range(n_sub):
                    s = min(max(np.rint(scale[j, lane] / d), scale_low), scale_high)
                    off = d * s - scale[j, lane]
                    cost += off * off * curvature[j, lane]
                if cost < least:
                    least = cost
                    chosen = d
        super_scale[lane] = chosen


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
    total_least = np.full(LANES, HUGE, np.float32)
    for turn in range(search.n_rounds):
        for j in range(n_sub):
            w = weights[j * size : (j + 1) * size]
            for lane in range(LANES):
                least[j, lane] = HUGE
            for k in range(-search.reach, search.reach + 1):
                for lane in range(LANES):
                    nearest = np.rint(scale[j, lane] / d[lane]) if d[lane] != np.float32(0) else np.float32(0)
                    tried[lane] = min(max(nearest + np.float32(k), sub_scales.low), sub_scales.high)
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


@compiled()
def _pack_q6_k(codes: Array, sub_scales: Array, block: Array) -> None:
    """Layout: 128 bytes of low fours, 64 of high twos, 16 int8 sub-scales, float16 scale."""
    for half in range(2):
        for i in range(32):
            c = half * 128 + i
            q1, q2, q3, q4 = codes[c] + 32, codes[c + 32] + 32, codes[c + 64] + 32, codes[c + 96] + 32
            block[half * 64 + i] = np.uint8((q1 & 15) | ((q3 & 15) << 4))
            block[half * 64 + 32 + i] = np.uint8((q2 & 15) | ((q4 & 15) << 4))
            block[128 + half * 32 + i] = np.uint8((q1 >> 4) | ((q2 >> 4) << 2) | ((q3 >> 4) << 4) | ((q4 >> 4) << 6))
    for j in range(16):
        block[192 + j] = np.uint8(np.int8(sub_scales[j]))


def decode(kind: GgmlType, data: ByteRows, n_columns: int) -> Float32Rows:
    """Decode rows; see Codec."""
    del kind
    out = np.empty((len(data), n_columns), np.float32)
    _decode_q6_k(data, out)
    return out


@compiled()
def _decode_q6_k(data: Array, out: Array) -> None:
    n_rows, n_columns = out.shape
    for row in range(n_rows):
        for block in range(n_columns // _SUPER):
            source = data[row, block * 210 : (block + 1) * 210]
            d = get_half(source[208:])
            for i in range(_SUPER):
                half, part, k = i // 128, (i % 128) // 32, i % 32
                fours = np.int32(source[half * 64 + (part % 2) * 32 + k])
                low = (fours >> 4) if part >= 2 else (fours & 15)
                twos = (np.int32(source[128 + half * 32 + k]) >> (2 * part)) & 3
                code = (low | (twos << 4)) - 32
                s = np.float32(np.int8(source[192 + i // 16]))
                out[row, block * _SUPER + i] = np.float32(d * s) * np.float32(code)


CODECS = {kind: Codec(kind, partial(encode, kind), partial(decode, kind)) for kind in FORMATS}
