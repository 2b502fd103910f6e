"""Searching a scale and an offset for the codes of a block, x ≈ scale · (0..high) − offset, in all lanes."""

from typing import Any

import numpy as np

from gemma4_quant.codecs.lanes import LANES, TINY, Array, invert
from gemma4_quant.codecs.search import Search
from gemma4_quant.compiled import compiled

# A scale must win by more than the rounding of the sums, for the reason scales.py gives.
_NOISE = np.float32(2e-6)


@compiled(finite=True)
def offset_sums(
    tile: Array, weights: Array, inverse: Array, offset: Array, high: Any, sum_l: Array, sum_ll: Array, sum_xl: Array
) -> None:
    """Round (x + offset) · inverse to codes in 0..high and write Σ w·l, Σ w·l² and Σ w·x·l."""
    for lane in range(LANES):
        sum_l[lane] = np.float32(0)
        sum_ll[lane] = np.float32(0)
        sum_xl[lane] = np.float32(0)
    for i in range(tile.shape[0]):
        w = weights[i]
        for lane in range(LANES):
            x = tile[i, lane]
            code = min(max(np.rint((x + offset[lane]) * inverse[lane]), np.float32(0)), high)
            wl = w * code
            sum_l[lane] += wl
            sum_ll[lane] += wl * code
            sum_xl[lane] += wl * x


@compiled(finite=True)
def round_above(row: Array, inverse: np.float32, offset: np.float32, high: Any, codes: Array) -> None:
    """Write the codes 0..high of one block's weights (n,) float32, (x + offset) · inverse, to codes (n,) int8."""
    for i in range(codes.shape[0]):
        codes[i] = np.int8(min(max(np.rint((row[i] + offset) * inverse), np.float32(0)), high))


@compiled(finite=True)
def offset_error(
    tile: Array, weights: Array, scale: Array, inverse: Array, offset: Array, high: Any, error: Array
) -> None:
    """Write the weighted squared error of rounding to scale · (0..high) − offset."""
    for lane in range(LANES):
        error[lane] = np.float32(0)
    for i in range(tile.shape[0]):
        w = weights[i]
        for lane in range(LANES):
            x = tile[i, lane] + offset[lane]
            code = min(max(np.rint(x * inverse[lane]), np.float32(0)), high)
            rest = x - scale[lane] * code
            error[lane] += w * rest * rest


@compiled(finite=True)
def _keep_smaller_error(
    sums: Array, sum_w: Any, sum_x: Array, sum_xx: Array, below_zero: bool, error: Array, scale: Array, offset: Array
) -> None:
    """Fit scale and offset to the latest codes by least squares; keep them where the error is the least so far.

    sums: rows Σ w·l, Σ w·l², Σ w·x·l. below_zero: the offset may not be negative (x ≈ scale · l − offset reaches
    only from −offset up, as the K types demand).
    """
    for lane in range(LANES):
        sum_l, ll, xl = sums[0, lane], sums[1, lane], sums[2, lane]
        determinant = sum_w * ll - sum_l * sum_l
        usable = determinant > max(_NOISE * sum_w * ll, TINY)  # codes all but equal fit any offset
        divisor = determinant if usable else np.float32(1)
        a = (sum_w * xl - sum_x[lane] * sum_l) / divisor
        m = (xl * sum_l - ll * sum_x[lane]) / divisor
        plain = not usable or a <= np.float32(0) or (below_zero and m < np.float32(0))
        a = xl / max(ll, TINY) if plain else a
        m = np.float32(0) if plain else m
        e = sum_xx[lane] - np.float32(2) * (a * xl - m * sum_x[lane]) + a * a * ll
        e += m * (m * sum_w - np.float32(2) * a * sum_l)
        better = e < error[lane] - _NOISE * sum_xx[lane] and a > np.float32(0)
        error[lane] = e if better else error[lane]
        scale[lane] = a if better else scale[lane]
        offset[lane] = m if better else offset[lane]


@compiled(finite=True)
def scan_offsets(
    tile: Array,
    weights: Array,
    high: Any,
    below_zero: bool,
    search: Search,
    work: Array,
    scale: Array,
    offset: Array,
) -> Any:
    """Search the best real scale and offset of each lane for x ≈ scale · (0..high) − offset; returns Σ w.

    Candidates spread the range of x over high + d codes, d from search.first to search.last; then the best is
    refitted. work: (10, LANES) float32; afterwards rows 4, 5, 6 are Σ w·l, Σ w·l², Σ w·x·l of the best
    and row 7 Σ w·x.
    """
    least, most, inverse, start = work[0], work[1], work[2], work[3]
    sums, sum_x, sum_xx, error = work[4:7], work[7], work[8], work[9]
    sum_w = np.float32(0)
    for lane in range(LANES):
        least[lane] = tile[0, lane]
        most[lane] = tile[0, lane]
        sum_x[lane] = np.float32(0)
        sum_xx[lane] = np.float32(0)
        scale[lane] = np.float32(0)
    for i in range(tile.shape[0]):
        w = weights[i]
        sum_w += w
        for lane in range(LANES):
            x = tile[i, lane]
            least[lane] = min(least[lane], x)
            most[lane] = max(most[lane], x)
            sum_x[lane] += w * x
            sum_xx[lane] += w * x * x
    for lane in range(LANES):
        least[lane] = min(least[lane], np.float32(0)) if below_zero else least[lane]
        # all codes 0 and the best constant: the answer for a constant block, and the one to beat
        m = -sum_x[lane] / max(sum_w, TINY)
        m = max(m, np.float32(0)) if below_zero else m
        offset[lane] = m
        error[lane] = sum_xx[lane] + m * (np.float32(2) * sum_x[lane] + m * sum_w)
    for k in range(search.n_candidates):
        d = np.float32(search.first + (search.last - search.first) * k / max(1, search.n_candidates - 1))
        # what lies beyond the codes is cut off above, on both sides, below, in turn
        below = np.float32(0.5) * np.float32(k % 3) * d
        for lane in range(LANES):
            spread = most[lane] - least[lane]
            inverse[lane] = (high + d) / (spread if spread > np.float32(0) else np.float32(1))
            m = -least[lane] - below * spread / (high + d)
            start[lane] = max(m, np.float32(0)) if below_zero else m
        offset_sums(tile, weights, inverse, start, high, sums[0], sums[1], sums[2])
        _keep_smaller_error(sums, sum_w, sum_x, sum_xx, below_zero, error, scale, offset)
    for _ in range(search.n_refits):
        invert(scale, inverse)
        offset_sums(tile, weights, inverse, offset, high, sums[0], sums[1], sums[2])
        _keep_smaller_error(sums, sum_w, sum_x, sum_xx, below_zero, error, scale, offset)
    invert(scale, inverse)
    offset_sums(tile, weights, inverse, offset, high, sums[0], sums[1], sums[2])
    return sum_w
