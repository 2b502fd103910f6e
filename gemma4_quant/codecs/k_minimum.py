"""Q2_K, Q4_K and Q5_K: super-blocks of 256 weights in sub-blocks, x ≈ d·s·code − dmin·m (ggml-common.h).

d and dmin are float16, s and m whole numbers for each sub-block. Search of a super-block: the best real scale and
offset of each sub-block (scan_offsets); pairs of float16 super-scales compared by a quadratic model of the error
around those; s and m by exact error; d and dmin fitted again, together, to the codes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks, normalised_importance
from gemma4_quant.codecs.half import LARGEST, half_bits, rounded_to_half, usable_half
from gemma4_quant.codecs.k_blocks import pack_minimum, super_scales_at, unpack_minimum
from gemma4_quant.codecs.lanes import HUGE, LANES, TINY, Array, invert, load_tile, n_tiles, tile_at
from gemma4_quant.codecs.offsets import offset_sums, round_above, scan_offsets, vector_error
from gemma4_quant.codecs.packing import get_half, put_half
from gemma4_quant.codecs.search import Search, Searches, search_for
from gemma4_quant.codecs.vectors import (
    WIDTH,
    Vector,
    larger,
    less,
    load,
    nearest_whole,
    smaller,
    spread,
    store,
    vector_inverse,
    where,
)
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_SUPER = 256


@dataclass(frozen=True)
class _Format:
    """Weights of a sub-block, its highest code, the highest s and m."""

    n_weights: int
    high: int
    top: int
    searches: Searches


FORMATS = {
    GgmlType.Q2_K: _Format(
        16,
        3,
        15,
        {
            Effort.FAST: Search(6, -0.5, 1.0, 1, 0, n_supers=5, n_rounds=2),
            Effort.BALANCED: Search(15, -0.6, 1.2, 1, 1, n_supers=9, n_rounds=2),
            Effort.BEST: Search(45, -1.0, 2.0, 2, 2, n_supers=9, n_rounds=4),
        },
    ),
    GgmlType.Q4_K: _Format(
        32,
        15,
        63,
        {
            Effort.FAST: Search(9, -2.0, 2.0, 1, 0, n_supers=5, n_rounds=2),
            Effort.BALANCED: Search(24, -2.0, 3.0, 1, 1, n_supers=9, n_rounds=2),
            Effort.BEST: Search(60, -2.0, 4.0, 2, 2, n_supers=9, n_rounds=4),
        },
    ),
    GgmlType.Q5_K: _Format(
        32,
        31,
        63,
        {
            Effort.FAST: Search(9, -2.0, 2.0, 1, 0, n_supers=5, n_rounds=2),
            Effort.BALANCED: Search(24, -3.0, 3.0, 1, 1, n_supers=7, n_rounds=2),
            Effort.BEST: Search(60, -4.0, 4.0, 2, 2, n_supers=9, n_rounds=4),
        },
    ),
}


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec."""
    rows = checked_rows(rows, kind, LARGEST / 2)  # half, since a scale spans from the least to the largest
    out = empty_blocks(rows, kind)
    weights = normalised_importance(importance, rows.shape[1])
    form = FORMATS[kind]
    high, top = np.float32(form.high), np.float32(form.top)
    _encode(rows, weights, int(kind), form.n_weights, high, top, search_for(form.searches, effort), out)
    return out


@compiled(finite=True)
def _encode(
    rows: Array,
    weights: Array,
    kind: int,
    size: int,
    high: np.float32,
    top: np.float32,
    search: Search,
    out: Array,
) -> None:
    n_sub = _SUPER // size
    block_bytes = out.shape[1] // (rows.shape[1] // _SUPER)
    tile = np.empty((n_sub, size, LANES), np.float32)
    work = np.empty((10, LANES), np.float32)
    # per sub-block: best scale, best offset, Σ w·l², Σ w·l, Σ w·x; and Σ w
    fits = np.empty((5, n_sub, LANES), np.float32)
    sum_w = np.empty(n_sub, np.float32)
    supers = np.empty((2, LANES), np.float32)  # d, dmin
    subs = np.empty((2, n_sub, LANES), np.float32)  # s, m
    inverse = np.empty((n_sub, LANES), np.float32)
    codes = np.empty(_SUPER, np.int8)
    for tile_number in range(n_tiles(rows.shape, _SUPER)):
        first_row, n, block = tile_at(tile_number, rows.shape, _SUPER)
        first = block * _SUPER
        w = weights[first : first + _SUPER]
        load_tile(rows, first_row, n, first, tile.reshape(_SUPER, LANES))
        for j in range(n_sub):
            wj = w[j * size : (j + 1) * size]
            sum_w[j] = scan_offsets(tile[j], wj, high, True, search, work, fits[0, j], fits[1, j])
            for lane in range(LANES):
                fits[2, j, lane] = work[5, lane]
                fits[3, j, lane] = work[4, lane]
                fits[4, j, lane] = work[7, lane]
        _choose_supers(fits, sum_w, top, search.n_supers, supers)
        _settle(tile, w, sum_w, high, top, search, fits, supers, subs, work)
        for j in range(n_sub):
            for lane in range(LANES):
                fits[0, j, lane] = supers[0, lane] * subs[0, j, lane]
                fits[1, j, lane] = supers[1, lane] * subs[1, j, lane]
            invert(fits[0, j], inverse[j])
        for lane in range(n):
            for j in range(n_sub):
                row = rows[first_row + lane, first + j * size : first + (j + 1) * size]
                round_above(row, inverse[j, lane], fits[1, j, lane], high, codes[j * size : (j + 1) * size])
            target = out[first_row + lane, block * block_bytes : (block + 1) * block_bytes]
            pack_minimum(kind, codes, subs[0, :, lane], subs[1, :, lane], target)
            at = super_scales_at(kind)
            put_half(half_bits(supers[0, lane]), target[at:])
            put_half(half_bits(supers[1, lane]), target[at + 2 :])


@compiled(finite=True)
def _choose_supers(fits: Array, sum_w: Array, top: np.float32, n_supers: int, supers: Array) -> None:
    """Choose d and dmin: largest scale (offset) at top + 1, top + ½, top …, by the quadratic model of the error."""
    tried = np.empty((2, n_supers, LANES), np.float32)
    for part in range(2):
        _super_candidates(fits[part], top, tried[part])
    work = np.empty((2, fits.shape[1], WIDTH), np.float32)
    for first in range(0, LANES, WIDTH):
        least = spread(HUGE)
        best_d, best_m = load(tried[0, 0], first), load(tried[1, 0], first)
        for kd in range(n_supers):
            d = load(tried[0, kd], first)
            _suiting_offsets(fits, sum_w, top, first, d, work)
            for km in range(n_supers):
                m = load(tried[1, km], first)
                cost = _model_error(fits, sum_w, top, first, m, work)
                better = less(cost, least)
                least = where(better, cost, least)
                best_d, best_m = where(better, d, best_d), where(better, m, best_m)
        store(supers[0], first, best_d)
        store(supers[1], first, best_m)


@compiled(finite=True)
def _suiting_offsets(fits: Array, sum_w: Array, top: np.float32, first: int, d: Vector, work: Array) -> None:
    """Write by how much d times the nearest s misses each sub-block's scale, and the offset that suits it then."""
    inverse, last = vector_inverse(d), spread(top)
    for j in range(fits.shape[1]):
        scale = load(fits[0, j], first)
        miss = d * smaller(nearest_whole(scale * inverse), last) - scale
        store(work[0, j], 0, miss)
        store(work[1, j], 0, load(fits[1, j], first) + miss * load(fits[3, j], first) / spread(sum_w[j]))


@compiled(finite=True)
def _model_error(fits: Array, sum_w: Array, top: np.float32, first: int, m: Vector, work: Array) -> Any:
    """Return the model's error with the offsets that are whole multiples of m and nearest to those that suit."""
    inverse, last, zero, two = vector_inverse(m), spread(top), spread(np.float32(0)), spread(np.float32(2))
    cost = zero
    for j in range(fits.shape[1]):
        miss = load(work[0, j], 0)
        q = smaller(larger(nearest_whole(load(work[1, j], 0) * inverse), zero), last)
        miss_m = m * q - load(fits[1, j], first)
        cost = cost + miss * miss * load(fits[2, j], first) + miss_m * miss_m * spread(sum_w[j])
        cost = cost - two * miss * miss_m * load(fits[3, j], first)
    return cost


@compiled(finite=True)
def _super_candidates(values: Array, top: np.float32, tried: Array) -> None:
    """Write float16 that put the largest of each lane's values (n_sub, LANES) at top + 1, top + ½, top … of top."""
    for lane in range(LANES):
        largest = np.float32(0)
        for j in range(values.shape[0]):
            largest = max(largest, values[j, lane])
        for k in range(tried.shape[0]):
            tried[k, lane] = usable_half(largest / (top + np.float32(1) - np.float32(0.5) * np.float32(k)))


@compiled(finite=True)
def _settle(
    tile: Array,
    weights: Array,
    sum_w: Array,
    high: np.float32,
    top: np.float32,
    search: Search,
    fits: Array,
    supers: Array,
    subs: Array,
    work: Array,
) -> None:
    """Settle s and m by exact error and d and dmin by least squares, in turn; keep the best of all rounds.

    fits: as after the scan, used up. supers: d and dmin, the first on entry, the best on return. subs: the result.
    """
    n_sub, size = tile.shape[0], tile.shape[1]
    current = supers.copy()
    chosen = np.empty((2, n_sub, LANES), np.float32)
    total_least = np.full(LANES, HUGE, np.float32)
    least = np.empty(LANES, np.float32)
    total = np.empty(LANES, np.float32)
    for turn in range(search.n_rounds):
        for lane in range(LANES):
            total[lane] = np.float32(0)
        for j in range(n_sub):
            w = weights[j * size : (j + 1) * size]
            _settle_sub_block(tile[j], w, sum_w[j], high, top, search.reach, fits[:, j], current, chosen[:, j], least)
            for lane in range(LANES):
                total[lane] += least[lane]
        for lane in range(LANES):
            if total[lane] < total_least[lane]:
                total_least[lane] = total[lane]
                for part in range(2):
                    supers[part, lane] = current[part, lane]
                    for j in range(n_sub):
                        subs[part, j, lane] = chosen[part, j, lane]
        if turn < search.n_rounds - 1:
            _refit_supers(tile, weights, sum_w, high, fits, current, chosen, work)


@compiled(finite=True)
def _settle_sub_block(
    tile: Array,
    weights: Array,
    sum_w: np.float32,
    high: np.float32,
    top: np.float32,
    reach: int,
    fit: Array,
    supers: Array,
    chosen: Array,
    least: Array,
) -> None:
    """Try values of s around the nearest, each with values of m around the one that suits it; keep the best pair."""
    zero, last, highest = spread(np.float32(0)), spread(top), spread(high)
    for first in range(0, LANES, WIDTH):
        d, dmin = load(supers[0], first), load(supers[1], first)
        per_d, per_dmin = vector_inverse(d), vector_inverse(dmin)
        scale, slope = load(fit[0], first), load(fit[3], first) / spread(sum_w)
        best, best_s, best_m = spread(HUGE), zero, zero
        for ks in range(-reach, reach + 1):
            s = smaller(larger(nearest_whole(scale * per_d) + spread(np.float32(ks)), zero), last)
            a = d * s
            inverse = vector_inverse(a)
            nearest = nearest_whole((load(fit[1], first) + (a - scale) * slope) * per_dmin)
            for km in range(-reach, reach + 1):
                m = smaller(larger(nearest + spread(np.float32(km)), zero), last)
                error = vector_error(tile, first, weights, a, inverse, dmin * m, highest)
                better = less(error, best)
                best = where(better, error, best)
                best_s, best_m = where(better, s, best_s), where(better, m, best_m)
        store(least, first, best)
        store(chosen[0], first, best_s)
        store(chosen[1], first, best_m)


@compiled(finite=True)
def _refit_supers(
    tile: Array,
    weights: Array,
    sum_w: Array,
    high: np.float32,
    fits: Array,
    supers: Array,
    chosen: Array,
    work: Array,
) -> None:
    """Fit d and dmin to all codes of the super-block (two normal equations) and round them to float16."""
    n_sub, size = tile.shape[0], tile.shape[1]
    p = np.zeros((5, LANES), np.float32)  # s²·Σwl², s·m·Σwl, m²·Σw, s·Σwxl, m·Σwx
    inverse = work[3]
    for j in range(n_sub):
        w = weights[j * size : (j + 1) * size]
        for lane in range(LANES):
            fits[0, j, lane] = supers[0, lane] * chosen[0, j, lane]
            fits[1, j, lane] = supers[1, lane] * chosen[1, j, lane]
        invert(fits[0, j], inverse)
        offset_sums(tile[j], w, inverse, fits[1, j], high, fits[3, j], fits[2, j], work[4])
        for lane in range(LANES):
            s, m = chosen[0, j, lane], chosen[1, j, lane]
            p[0, lane] += s * s * fits[2, j, lane]
            p[1, lane] += s * m * fits[3, j, lane]
            p[2, lane] += m * m * sum_w[j]
            p[3, lane] += s * work[4, lane]
            p[4, lane] += m * fits[4, j, lane]
    for lane in range(LANES):
        ss, sm, mm, sx, mx = p[0, lane], p[1, lane], p[2, lane], p[3, lane], p[4, lane]
        determinant = ss * mm - sm * sm
        d = np.float32(0)
        dmin = np.float32(0)
        if determinant > np.float32(1e-6) * ss * mm and determinant > TINY:
            d = (sx * mm - mx * sm) / determinant
            dmin = (sx * sm - ss * mx) / determinant
        elif ss > np.float32(0):
            d = sx / ss
        d = rounded_to_half(d)
        dmin = rounded_to_half(dmin)
        supers[0, lane] = d if d > np.float32(0) else supers[0, lane]
        supers[1, lane] = dmin if dmin > np.float32(0) else supers[1, lane]


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
    scales = np.empty(_SUPER // size, np.float32)
    minima = np.empty(_SUPER // size, np.float32)
    for row in range(out.shape[0]):
        for block in range(n_blocks):
            source = data[row, block * block_bytes : (block + 1) * block_bytes]
            unpack_minimum(kind, source, codes, scales, minima)
            at = super_scales_at(kind)
            d, dmin = get_half(source[at:]), get_half(source[at + 2 :])
            for j in range(_SUPER // size):
                a, offset = d * scales[j], dmin * minima[j]
                for i in range(j * size, (j + 1) * size):
                    out[row, block * _SUPER + i] = np.float32(a * np.float32(codes[i])) - offset


CODECS = {kind: Codec(kind, partial(encode, kind), partial(decode, kind)) for kind in FORMATS}
