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
from gemma4_quant.codecs.half import half_bits, half_value, rounded_to_half
from gemma4_quant.codecs.lanes import (
    HUGE,
    LANES,
    Array,
    invert,
    load_tile,
    scale_error,
    scale_sums,
    scan_scales,
)
from gemma4_quant.codecs.packing import put_half
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_SUPER = 256


@dataclass(frozen=True)
class _Layout:
    """Weights of a sub-block, range of its codes and of its sub-scale."""

    n_weights: int
    code_low: int
    code_high: int
    scale_low: int
    scale_high: int


@dataclass(frozen=True)
class _Search:
    """n_candidates, first, last, n_refits: of scan_scales. n_supers: super-scales compared.

    reach: sub-scales tried on each side of the nearest. n_rounds: how often super-scale and sub-scales are settled.
    """

    n_candidates: int
    first: float
    last: float
    n_refits: int
    n_supers: int
    reach: int
    n_rounds: int


_LAYOUTS = {GgmlType.Q6_K: _Layout(16, -32, 31, -128, 127)}

_SEARCHES = {
    GgmlType.Q6_K: {
        Effort.FAST: _Search(4, -1.0, 1.0, 1, 3, 0, 2),
        Effort.BALANCED: _Search(10, -3.0, 1.0, 1, 5, 1, 2),
        Effort.BEST: _Search(24, -5.0, 1.0, 1, 9, 1, 3),
    }
}


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
    """Encode rows; see Codec."""
    rows = checked_rows(rows, kind)
    out = empty_blocks(rows, kind)
    weights = normalised_importance(importance, rows.shape[1])
    layout = _LAYOUTS[kind]
    search = _SEARCHES[kind][Effort.FAST if effort is Effort.PLAIN else effort]
    _encode(
        rows,
        weights,
        layout.n_weights,
        np.array([layout.code_low, layout.code_high, layout.scale_low, layout.scale_high], np.float32),
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
    size: int,
    limits: Array,
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
    n_sub = _SUPER // size
    low, high = limits[0], limits[1]
    block_bytes = out.shape[1] // (n_columns // _SUPER)
    tile = np.empty((n_sub, size, LANES), np.float32)
    work = np.empty((5, LANES), np.float32)
    scale = np.empty((n_sub, LANES), np.float32)
    curvature = np.empty((n_sub, LANES), np.float32)
    super_scale = np.empty(LANES, np.float32)
    sub_scale = np.empty((n_sub, LANES), np.float32)
    codes = np.empty((_SUPER, LANES), np.int16)
    for first_row in range(0, n_rows, LANES):
        n = min(LANES, n_rows - first_row)
        for block in range(n_columns // _SUPER):
            w = weights[block * _SUPER : (block + 1) * _SUPER]
            for j in range(n_sub):
                load_tile(rows, first_row, n, block * _SUPER + j * size, tile[j])
                wj = w[j * size : (j + 1) * size]
                scan_scales(tile[j], wj, low, high, n_candidates, first, last, n_refits, work, scale[j])
                invert(scale[j], work[0])
                scale_sums(tile[j], wj, work[0], low, high, curvature[j], work[1])
            _choose_super_scale(scale, curvature, limits, n_supers, super_scale)
            _settle(tile, w, limits, reach, n_rounds, scale, super_scale, sub_scale, work)
            for j in range(n_sub):
                for lane in range(LANES):
                    work[0, lane] = super_scale[lane] * sub_scale[j, lane]
                invert(work[0], work[1])
                for i in range(size):
                    for lane in range(LANES):
                        code = np.rint(tile[j, i, lane] * work[1, lane])
                        codes[j * size + i, lane] = np.int16(min(max(code, low), high))
            _pack_q6_k(codes, super_scale, sub_scale, n, first_row, block * block_bytes, out)


@compiled(finite=True)
def _choose_super_scale(scale: Array, curvature: Array, limits: Array, n_supers: int, super_scale: Array) -> None:
    """Choose a float16 super-scale; the largest sub-scale goes to scale_low + k / 2, the end with more room."""
    n_sub = scale.shape[0]
    scale_low, scale_high = limits[2], limits[3]
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
    limits: Array,
    reach: int,
    n_rounds: int,
    scale: Array,
    super_scale: Array,
    sub_scale: Array,
    work: Array,
) -> None:
    """Settle sub-scales by exact error and the super-scale by least squares, in turn; keep the best of all rounds.

    scale (n_sub, LANES): best real scales on entry, used up. super_scale, sub_scale: the result.
    """
    n_sub, size = tile.shape[0], tile.shape[1]
    low, high = limits[0], limits[1]
    tried, a, inverse, error = work[0], work[1], work[2], work[3]
    least = np.empty((n_sub, LANES), np.float32)
    chosen = np.empty((n_sub, LANES), np.float32)
    d = super_scale.copy()
    total_least = np.full(LANES, HUGE, np.float32)
    for turn in range(n_rounds):
        for j in range(n_sub):
            w = weights[j * size : (j + 1) * size]
            for lane in range(LANES):
                least[j, lane] = HUGE
            for k in range(-reach, reach + 1):
                for lane in range(LANES):
                    nearest = np.rint(scale[j, lane] / d[lane]) if d[lane] != np.float32(0) else np.float32(0)
                    tried[lane] = min(max(nearest + np.float32(k), limits[2]), limits[3])
                    a[lane] = d[lane] * tried[lane]
                invert(a, inverse)
                scale_error(tile[j], w, a, inverse, low, high, error)
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
        if turn < n_rounds - 1:
            _refit_super_scale(tile, weights, low, high, scale, d, chosen, work)


@compiled(finite=True)
def _refit_super_scale(
    tile: Array,
    weights: Array,
    low: np.float32,
    high: np.float32,
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
        scale_sums(tile[j], weights[j * size : (j + 1) * size], inverse, low, high, ll, xl)
        for lane in range(LANES):
            numerator[lane] += sub_scale[j, lane] * xl[lane]
            denominator[lane] += sub_scale[j, lane] * sub_scale[j, lane] * ll[lane]
    for lane in range(LANES):
        divisor = denominator[lane] if denominator[lane] > np.float32(0) else np.float32(1)
        fitted = rounded_to_half(numerator[lane] / divisor)
        super_scale[lane] = fitted if fitted != np.float32(0) else super_scale[lane]


@compiled()
def _pack_q6_k(
    codes: Array, super_scale: Array, sub_scale: Array, n: int, first_row: int, at: int, out: Array
) -> None:
    """Layout: 128 bytes of low fours, 64 of high twos, 16 int8 sub-scales, float16 scale."""
    for lane in range(n):
        block = out[first_row + lane, at : at + 210]
        for half in range(2):
            for i in range(32):
                c = half * 128 + i
                q1 = codes[c, lane] + 32
                q2 = codes[c + 32, lane] + 32
                q3 = codes[c + 64, lane] + 32
                q4 = codes[c + 96, lane] + 32
                block[half * 64 + i] = np.uint8((q1 & 15) | ((q3 & 15) << 4))
                block[half * 64 + 32 + i] = np.uint8((q2 & 15) | ((q4 & 15) << 4))
                block[128 + half * 32 + i] = np.uint8(
                    (q1 >> 4) | ((q2 >> 4) << 2) | ((q3 >> 4) << 4) | ((q4 >> 4) << 6)
                )
        for j in range(16):
            block[192 + j] = np.uint8(np.int8(sub_scale[j, lane]))
        put_half(half_bits(super_scale[lane]), block[208:])


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
            d = half_value(np.uint16(source[208]) | (np.uint16(source[209]) << np.uint16(8)))
            for i in range(_SUPER):
                half, part, k = i // 128, (i % 128) // 32, i % 32
                fours = np.int32(source[half * 64 + (part % 2) * 32 + k])
                low = (fours >> 4) if part >= 2 else (fours & 15)
                twos = (np.int32(source[128 + half * 32 + k]) >> (2 * part)) & 3
                code = (low | (twos << 4)) - 32
                s = np.float32(np.int8(source[192 + i // 16]))
                out[row, block * _SUPER + i] = np.float32(d * s) * np.float32(code)


CODECS = {kind: Codec(kind, partial(encode, kind), partial(decode, kind)) for kind in _LAYOUTS}
