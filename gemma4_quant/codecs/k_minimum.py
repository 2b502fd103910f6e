"""Q4_K and Q5_K: super-blocks of 256 weights in eight sub-blocks, x ≈ d·s·code − dmin·m (ggml-common.h).

d and dmin are float16, s and m six bits for each sub-block. Search of a super-block: the best real scale and offset
of each sub-block (scan_offsets); pairs of float16 super-scales compared by a quadratic model of the error around
those; s and m by exact error; d and dmin fitted again, together, to the codes.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks, normalised_importance
from gemma4_quant.codecs.half import LARGEST, half_bits, half_value, rounded_to_half
from gemma4_quant.codecs.lanes import (
    HUGE,
    LANES,
    TINY,
    Array,
    invert,
    load_tile,
    offset_error,
    offset_sums,
    scan_offsets,
)
from gemma4_quant.codecs.packing import put_half
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_SUPER = 256
_SUB = 32
_N_SUB = _SUPER // _SUB
_TOP = np.float32(63)
"""Largest s and m."""


@dataclass(frozen=True)
class _Search:
    """n_candidates, first, last, n_refits: of scan_offsets. n_supers: super-scales compared for d, and for dmin.

    reach: values of s and of m tried on each side of the nearest. n_rounds: how often all are settled.
    """

    n_candidates: int
    first: float
    last: float
    n_refits: int
    n_supers: int
    reach: int
    n_rounds: int


_HIGHEST = {GgmlType.Q4_K: 15, GgmlType.Q5_K: 31}

_SEARCHES = {
    Effort.FAST: _Search(6, -1.0, 0.8, 1, 5, 0, 2),
    Effort.BALANCED: _Search(12, -3.0, 0.9, 2, 9, 1, 2),
    Effort.BEST: _Search(32, -4.0, 1.0, 3, 9, 2, 4),
}


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec."""
    rows = checked_rows(rows, kind, LARGEST / 2)  # half, since a scale spans from the least to the largest
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
        search.n_supers,
        search.reach,
        search.n_rounds,
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
    n_supers: int,
    reach: int,
    n_rounds: int,
    out: Array,
) -> None:
    n_rows, n_columns = rows.shape
    block_bytes = out.shape[1] // (n_columns // _SUPER)
    tile = np.empty((_N_SUB, _SUB, LANES), np.float32)
    work = np.empty((10, LANES), np.float32)
    # per sub-block: best scale, best offset, Σ w·l², Σ w·l, Σ w·x; and Σ w
    fits = np.empty((5, _N_SUB, LANES), np.float32)
    sum_w = np.empty(_N_SUB, np.float32)
    supers = np.empty((2, LANES), np.float32)  # d, dmin
    subs = np.empty((2, _N_SUB, LANES), np.float32)  # s, m
    codes = np.empty((_SUPER, LANES), np.uint8)
    for first_row in range(0, n_rows, LANES):
        n = min(LANES, n_rows - first_row)
        for block in range(n_columns // _SUPER):
            w = weights[block * _SUPER : (block + 1) * _SUPER]
            for j in range(_N_SUB):
                load_tile(rows, first_row, n, block * _SUPER + j * _SUB, tile[j])
                wj = w[j * _SUB : (j + 1) * _SUB]
                sum_w[j] = scan_offsets(
                    tile[j], wj, high, True, n_candidates, first, last, n_refits, work, fits[0, j], fits[1, j]
                )
                for lane in range(LANES):
                    fits[2, j, lane] = work[5, lane]
                    fits[3, j, lane] = work[4, lane]
                    fits[4, j, lane] = work[7, lane]
            _choose_supers(fits, sum_w, n_supers, supers)
            _settle(tile, w, sum_w, high, reach, n_rounds, fits, supers, subs, work)
            for j in range(_N_SUB):
                for lane in range(LANES):
                    work[0, lane] = supers[0, lane] * subs[0, j, lane]
                    work[1, lane] = supers[1, lane] * subs[1, j, lane]
                invert(work[0], work[2])
                for i in range(_SUB):
                    for lane in range(LANES):
                        code = np.rint((tile[j, i, lane] + work[1, lane]) * work[2, lane])
                        codes[j * _SUB + i, lane] = np.uint8(min(max(code, np.float32(0)), high))
            _pack(codes, supers, subs, n, high == np.float32(31), first_row, block * block_bytes, out)


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
    reach: int,
    n_rounds: int,
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
    for turn in range(n_rounds):
        for lane in range(LANES):
            total[lane] = np.float32(0)
        for j in range(_N_SUB):
            w = weights[j * _SUB : (j + 1) * _SUB]
            _settle_sub_block(tile[j], w, sum_w[j], high, reach, fits[:, j], current, chosen[:, j], least, work)
            for lane in range(LANES):
                total[lane] += least[lane]
        for lane in range(LANES):
            if total[lane] < total_least[lane]:
                total_least[lane] = total[lane]
                for part in range(2):
                    supers[part, lane] = current[part, lane]
                    for j in range(_N_SUB):
                        subs[part, j, lane] = chosen[part, j, lane]
        if turn < n_rounds - 1:
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
def _pack(
    codes: Array, supers: Array, subs: Array, n: int, has_fifth: bool, first_row: int, at: int, out: Array
) -> None:
    """Layout: d, dmin, twelve bytes of s and m, for Q5_K 32 bytes of fifth bits, 128 bytes of fours."""
    fours_at = 48 if has_fifth else 16
    for lane in range(n):
        block = out[first_row + lane, at:]
        put_half(half_bits(supers[0, lane]), block)
        put_half(half_bits(supers[1, lane]), block[2:])
        for j in range(4):
            s_low, s_high = np.int32(subs[0, j, lane]), np.int32(subs[0, j + 4, lane])
            m_low, m_high = np.int32(subs[1, j, lane]), np.int32(subs[1, j + 4, lane])
            block[4 + j] = np.uint8(s_low | ((s_high >> 4) << 6))
            block[8 + j] = np.uint8(m_low | ((m_high >> 4) << 6))
            block[12 + j] = np.uint8((s_high & 15) | ((m_high & 15) << 4))
        for i in range(32):
            for pair in range(4):
                first, second = codes[pair * 64 + i, lane], codes[pair * 64 + 32 + i, lane]
                block[fours_at + pair * 32 + i] = np.uint8((first & 15) | ((second & 15) << 4))
            if has_fifth:
                bits = 0
                for j in range(_N_SUB):
                    bits |= int(codes[j * _SUB + i, lane] >> 4) << j
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
            d = half_value(np.uint16(source[0]) | (np.uint16(source[1]) << np.uint16(8)))
            dmin = half_value(np.uint16(source[2]) | (np.uint16(source[3]) << np.uint16(8)))
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
