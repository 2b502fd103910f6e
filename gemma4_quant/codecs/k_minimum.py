"""Q4_K and Q5_K: super-blocks of 256 weights in eight sub-blocks, x ≈ d·s·code − dmin·m (ggml-common.h).

d and dmin are float16, s and m six bits for each sub-block. Search of a super-block: the best real scale and offset
of each sub-block (scan_offsets); pairs of float16 super-scales compared by a quadratic model of the error around
those; s and m by exact error; d and dmin fitted again, together, to the codes.
"""

from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks, normalised_importance
from gemma4_quant.codecs.half import LARGEST, half_bits, rounded_to_half
from gemma4_quant.codecs.lanes import HUGE, LANES, TINY, Array, invert, load_tile, n_tiles, tile_at
from gemma4_quant.codecs.offsets import offset_error, offset_sums, round_above, scan_offsets
from gemma4_quant.codecs.packing import get_half, pack_fours, put_half
from gemma4_quant.codecs.search import Search, search_for
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_SUPER = 256
_SUB = 32
_N_SUB = _SUPER // _SUB
_TOP = np.float32(63)
"""Largest s and m."""


_HIGHEST = {GgmlType.Q4_K: 15, GgmlType.Q5_K: 31}

_SEARCHES = {
    Effort.FAST: Search(6, -1.0, 0.8, 1, 0, n_supers=5, n_rounds=2),
    Effort.BALANCED: Search(12, -3.0, 0.9, 2, 1, n_supers=9, n_rounds=2),
    Effort.BEST: Search(32, -4.0, 1.0, 3, 2, n_supers=9, n_rounds=4),
}


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec."""
    rows = checked_rows(rows, kind, LARGEST / 2)  # half, since a scale spans from the least to the largest
    out = empty_blocks(rows, kind)
    weights = normalised_importance(importance, rows.shape[1])
    _encode(rows, weights, np.float32(_HIGHEST[kind]), search_for(_SEARCHES, effort), out)
    return out


@compiled(finite=True)
def _encode(rows: Array, weights: Array, high: np.float32, search: Search, out: Array) -> None:
    block_bytes = out.shape[1] // (rows.shape[1] // _SUPER)
    tile = np.empty((_N_SUB, _SUB, LANES), np.float32)
    work = np.empty((10, LANES), np.float32)
    # per sub-block: best scale, best offset, Σ w·l², Σ w·l, Σ w·x; and Σ w
    fits = np.empty((5, _N_SUB, LANES), np.float32)
    sum_w = np.empty(_N_SUB, np.float32)
    supers = np.empty((2, LANES), np.float32)  # d, dmin
    subs = np.empty((2, _N_SUB, LANES), np.float32)  # s, m
    inverse = np.empty((_N_SUB, LANES), np.float32)
    codes = np.empty(_SUPER, np.int8)
    for tile_number in range(n_tiles(rows.shape, _SUPER)):
        first_row, n, block = tile_at(tile_number, rows.shape, _SUPER)
        first = block * _SUPER
        w = weights[first : first + _SUPER]
        load_tile(rows, first_row, n, first, tile.reshape(_SUPER, LANES))
        for j in range(_N_SUB):
            wj = w[j * _SUB : (j + 1) * _SUB]
            sum_w[j] = scan_offsets(tile[j], wj, high, True, search, work, fits[0, j], fits[1, j])
            for lane in range(LANES):
                fits[2, j, lane] = work[5, lane]
                fits[3, j, lane] = work[4, lane]
                fits[4, j, lane] = work[7, lane]
        _choose_supers(fits, sum_w, search.n_supers, supers)
        _settle(tile, w, sum_w, high, search, fits, supers, subs, work)
        for j in range(_N_SUB):
            for lane in range(LANES):
                fits[0, j, lane] = supers[0, lane] * subs[0, j, lane]
                fits[1, j, lane] = supers[1, lane] * subs[1, j, lane]
            invert(fits[0, j], inverse[j])
        for lane in range(n):
            for j in range(_N_SUB):
                row = rows[first_row + lane, first + j * _SUB : first + (j + 1) * _SUB]
                round_above(row, inverse[j, lane], fits[1, j, lane], high, codes[j * _SUB : (j + 1) * _SUB])
            target = out[first_row + lane, block * block_bytes : (block + 1) * block_bytes]
            put_half(half_bits(supers[0, lane]), target)
            put_half(half_bits(supers[1, lane]), target[2:])
            _pack(codes, subs[0, :, lane], subs[1, :, lane], high == np.float32(31), target)


@compiled(finite=True)
def _usable_half(value: np.float32) -> np.float32:
    """Round a positive super-scale to float16, up to the smallest one where it would vanish."""
    d = rounded_to_half(value)
    return np.float32(2.0**-24) if d == np.float32(0) and value > np.float32(0) else d


@compiled(finite=True)
def _choose_supers(fits: Array, sum_w: Array, n_supers: int, supers: Array) -> None:
    """Choose d and dmin: largest scale (offset) at 64, 63.5, 63 … of 63, by the quadratic model of the error."""
    for lane in range(LANES):
        top_a = np.float32(0)
        top_m = np.float32(0)
        for j in range(_N_SUB):
            top_a = max(top_a, fits[0, j, lane])
            top_m = max(top_m, fits[1, j, lane])
        least = HUGE
        supers[0, lane] = np.float32(0)
        supers[1, lane] = np.float32(0)
        for kd in range(n_supers):
            d = _usable_half(top_a / (_TOP + np.float32(1) - np.float32(0.5) * np.float32(kd)))
            for km in range(n_supers):
                m = _usable_half(top_m / (_TOP + np.float32(1) - np.float32(0.5) * np.float32(km)))
                cost = np.float32(0)
                for j in range(_N_SUB):
                    a = fits[0, j, lane]
                    s = min(np.rint(a / d), _TOP) if d > np.float32(0) else np.float32(0)
                    off_a = d * s - a
                    wanted = fits[1, j, lane] + off_a * fits[3, j, lane] / sum_w[j]
                    q = min(max(np.rint(wanted / m), np.float32(0)), _TOP) if m > np.float32(0) else np.float32(0)
                    off_m = m * q - fits[1, j, lane]
                    cost += off_a * off_a * fits[2, j, lane] + off_m * off_m * sum_w[j]
                    cost -= np.float32(2) * off_a * off_m * fits[3, j, lane]
                if cost < least:
                    least = cost
                    supers[0, lane] = d
                    supers[1, lane] = m


@compiled(finite=True)
def _settle(
    tile: Array,
    weights: Array,
    sum_w: Array,
    high: np.float32,
    search: Search,
    fits: Array,
    supers: Array,
    subs: Array,
    work: Array,
) -> None:
    """Settle s and m by exact error and d and dmin by least squares, in turn; keep the best of all rounds.

    fits: as after the scan, used up. supers: d and dmin, the first on entry, the best on return. subs: the result.
    """
    current = supers.copy()
    chosen = np.empty((2, _N_SUB, LANES), np.float32)
    total_least = np.full(LANES, HUGE, np.float32)
    least = np.empty(LANES, np.float32)
    total = np.empty(LANES, np.float32)
    for turn in range(search.n_rounds):
        for lane in range(LANES):
            total[lane] = np.float32(0)
        for j in range(_N_SUB):
            w = weights[j * _SUB : (j + 1) * _SUB]
            _settle_sub_block(
                tile[j], w, sum_w[j], high, search.reach, fits[:, j], current, chosen[:, j], least, work
            )
            for lane in range(LANES):
                total[lane] += least[lane]
        for lane in range(LANES):
            if total[lane] < total_least[lane]:
                total_least[lane] = total[lane]
                for part in range(2):
                    supers[part, lane] = current[part, lane]
                    for j in range(_N_SUB):
                        subs[part, j, lane] = chosen[part, j, lane]
        if turn < search.n_rounds - 1:
            _refit_supers(tile, weights, sum_w, high, fits, current, chosen, work)


@compiled(finite=True)
def _settle_sub_block(
    tile: Array,
    weights: Array,
    sum_w: np.float32,
    high: np.float32,
    reach: int,
    fit: Array,
    supers: Array,
    chosen: Array,
    least: Array,
    work: Array,
) -> None:
    """Try values of s around the nearest, each with values of m around the one that suits it; keep the best pair."""
    s, m, a, inverse, offset, wanted, error = work[0], work[1], work[2], work[3], work[4], work[5], work[6]
    for lane in range(LANES):
        least[lane] = HUGE
    for ks in range(-reach, reach + 1):
        for lane in range(LANES):
            d = supers[0, lane]
            nearest = np.rint(fit[0, lane] / d) if d > np.float32(0) else np.float32(0)
            s[lane] = min(max(nearest + np.float32(ks), np.float32(0)), _TOP)
            a[lane] = d * s[lane]
            wanted[lane] = fit[1, lane] + (a[lane] - fit[0, lane]) * fit[3, lane] / sum_w
        invert(a, inverse)
        for km in range(-reach, reach + 1):
            for lane in range(LANES):
                step = supers[1, lane]
                nearest = np.rint(wanted[lane] / step) if step > np.float32(0) else np.float32(0)
                m[lane] = min(max(nearest + np.float32(km), np.float32(0)), _TOP)
                offset[lane] = step * m[lane]
            offset_error(tile, weights, a, inverse, offset, high, error)
            for lane in range(LANES):
                better = error[lane] < least[lane]
                least[lane] = error[lane] if better else least[lane]
                chosen[0, lane] = s[lane] if better else chosen[0, lane]
                chosen[1, lane] = m[lane] if better else chosen[1, lane]


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
    p = np.zeros((5, LANES), np.float32)  # s²·Σwl², s·m·Σwl, m²·Σw, s·Σwxl, m·Σwx
    inverse = work[3]
    for j in range(_N_SUB):
        w = weights[j * _SUB : (j + 1) * _SUB]
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


@compiled()
def _pack(codes: Array, scales: Array, minima: Array, has_fifth: bool, block: Array) -> None:
    """Write twelve bytes of s and m, for Q5_K 32 bytes of fifth bits, 128 bytes of fours, after d and dmin."""
    fours_at = 48 if has_fifth else 16
    for j in range(4):
        s_low, s_high = np.int32(scales[j]), np.int32(scales[j + 4])
        m_low, m_high = np.int32(minima[j]), np.int32(minima[j + 4])
        block[4 + j] = np.uint8(s_low | ((s_high >> 4) << 6))
        block[8 + j] = np.uint8(m_low | ((m_high >> 4) << 6))
        block[12 + j] = np.uint8((s_high & 15) | ((m_high & 15) << 4))
    for pair in range(4):
        pack_fours(codes[pair * 64 : (pair + 1) * 64], 0, block[fours_at + pair * 32 :])
    if has_fifth:
        for i in range(_SUB):
            bits = 0
            for j in range(_N_SUB):
                bits |= (codes[j * _SUB + i] >> 4) << j
            block[16 + i] = np.uint8(bits)


def decode(kind: GgmlType, data: ByteRows, n_columns: int) -> Float32Rows:
    """Decode rows; see Codec."""
    out = np.empty((len(data), n_columns), np.float32)
    _decode(data, kind is GgmlType.Q5_K, out)
    return out


@compiled()
def _decode(data: Array, has_fifth: bool, out: Array) -> None:
    n_rows, n_columns = out.shape
    block_bytes = 176 if has_fifth else 144
    for row in range(n_rows):
        for block in range(n_columns // _SUPER):
            source = data[row, block * block_bytes : (block + 1) * block_bytes]
            d, dmin = get_half(source), get_half(source[2:])
            fours = source[block_bytes - 128 :]
            for j in range(_N_SUB):
                if j < 4:
                    s, m = np.int32(source[4 + j] & 63), np.int32(source[8 + j] & 63)
                else:
                    s = np.int32(source[8 + j] & 15) | (np.int32(source[j] >> 6) << 4)
                    m = np.int32(source[8 + j] >> 4) | (np.int32(source[4 + j] >> 6) << 4)
                a, offset = d * np.float32(s), dmin * np.float32(m)
                for i in range(_SUB):
                    byte = np.int32(fours[(j // 2) * 32 + i])
                    code = (byte >> 4) if j % 2 else (byte & 15)
                    if has_fifth:
                        code |= ((np.int32(source[16 + i]) >> j) & 1) << 4
                    out[row, block * _SUPER + j * _SUB + i] = np.float32(a * np.float32(code)) - offset


CODECS = {kind: Codec(kind, partial(encode, kind), partial(decode, kind)) for kind in _HIGHEST}
