"""Searching a scale and an offset for the codes of a block, x ≈ scale · (0..high) − offset, in all lanes."""

from typing import Any

import numpy as np

from gemma4_quant.codecs.lanes import LANES, TINY, Array
from gemma4_quant.codecs.search import Search
from gemma4_quant.codecs.vectors import (
    WIDTH,
    Vector,
    both,
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

# A scale must win by more than the rounding of the sums, for the reason scales.py gives.
_NOISE = np.float32(2e-6)


@compiled(finite=True)
def vector_sums(tile: Array, first: int, weights: Array, inverse: Vector, offset: Vector, top: Vector) -> Any:
    """Round (x + offset) · inverse to codes in 0..top and return Σ w·l, Σ w·l² and Σ w·x·l of WIDTH lanes."""
    zero = spread(np.float32(0))
    sum_l = sum_ll = sum_xl = zero
    for i in range(tile.shape[0]):
        w, x = spread(weights[i]), load(tile[i], first)
        code = smaller(larger(nearest_whole((x + offset) * inverse), zero), top)
        wl = w * code
        sum_l = sum_l + wl
        sum_ll = sum_ll + wl * code
        sum_xl = sum_xl + wl * x
    return sum_l, sum_ll, sum_xl


@compiled(finite=True)
def vector_error(
    tile: Array, first: int, weights: Array, scale: Vector, inverse: Vector, offset: Vector, top: Vector
) -> Any:
    """Return the weighted squared error of rounding WIDTH lanes to scale · (0..top) − offset; inverse: 1 / scale."""
    zero = spread(np.float32(0))
    error = zero
    for i in range(tile.shape[0]):
        w, x = spread(weights[i]), load(tile[i], first) + offset
        rest = x - scale * smaller(larger(nearest_whole(x * inverse), zero), top)
        error = error + w * rest * rest
    return error


@compiled(finite=True)
def offset_sums(
    tile: Array, weights: Array, inverse: Array, offset: Array, high: Any, sum_l: Array, sum_ll: Array, sum_xl: Array
) -> None:
    """Round (x + offset) · inverse to codes in 0..high and write Σ w·l, Σ w·l² and Σ w·x·l."""
    for first in range(0, LANES, WIDTH):
        found = vector_sums(tile, first, weights, load(inverse, first), load(offset, first), spread(high))
        store(sum_l, first, found[0])
        store(sum_ll, first, found[1])
        store(sum_xl, first, found[2])


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
    for first in range(0, LANES, WIDTH):
        a, per, m = load(scale, first), load(inverse, first), load(offset, first)
        store(error, first, vector_error(tile, first, weights, a, per, m, spread(high)))


@compiled(finite=True)
def _better_fit(sums: Any, sum_w: Vector, sum_x: Vector, sum_xx: Vector, below_zero: bool, best: Any) -> Any:
    """Fit scale and offset to codes by least squares; return them, or the best so far where its error is less.

    sums: Σ w·l, Σ w·l², Σ w·x·l. below_zero: the offset may not be negative (x ≈ scale · l − offset reaches only
    from −offset up, as the K types demand). best: error, scale, offset.
    """
    zero, one, two, noise = spread(np.float32(0)), spread(np.float32(1)), spread(np.float32(2)), spread(_NOISE)
    sum_l, ll, xl = sums
    error, scale, offset = best
    determinant = sum_w * ll - sum_l * sum_l
    usable = less(larger(noise * sum_w * ll, spread(TINY)), determinant)  # codes all but equal fit any offset
    divisor = where(usable, determinant, one)
    a = (sum_w * xl - sum_x * sum_l) / divisor
    m = (xl * sum_l - ll * sum_x) / divisor
    usable = both(usable, less(zero, a))
    if below_zero:
        usable = both(usable, less(zero, m))
    a = where(usable, a, xl / larger(ll, spread(TINY)))
    m = where(usable, m, zero)
    e = sum_xx - two * (a * xl - m * sum_x) + a * a * ll
    e = e + m * (m * sum_w - two * a * sum_l)
    better = both(less(e, error - noise * sum_xx), less(zero, a))
    return where(better, e, error), where(better, a, scale), where(better, m, offset)


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
    sum_w = np.float32(0)
    for i in range(tile.shape[0]):
        sum_w += weights[i]
    for first in range(0, LANES, WIDTH):
        best, sums, sum_x = _scan_vector(tile, first, weights, sum_w, high, below_zero, search)
        store(scale, first, best[1])
        store(offset, first, best[2])
        store(work[4], first, sums[0])
        store(work[5], first, sums[1])
        store(work[6], first, sums[2])
        store(work[7], first, sum_x)
    return sum_w


@compiled(finite=True)
def _scan_vector(
    tile: Array, first: int, weights: Array, total: Any, high: Any, below_zero: bool, search: Search
) -> Any:
    """Return error, scale and offset of the best candidate of WIDTH lanes; its sums; Σ w·x."""
    zero, one, top, sum_w = spread(np.float32(0)), spread(np.float32(1)), spread(high), spread(total)
    least = most = load(tile[0], first)
    sum_x = sum_xx = zero
    for i in range(tile.shape[0]):
        w, x = spread(weights[i]), load(tile[i], first)
        least, most = smaller(least, x), larger(most, x)
        sum_x = sum_x + w * x
        sum_xx = sum_xx + w * x * x
    # all codes 0 and the best constant: the answer for a constant block, and the one to beat
    constant = (zero - sum_x) / spread(max(total, TINY))
    if below_zero:
        least, constant = smaller(least, zero), larger(constant, zero)
    best = (sum_xx + constant * (spread(np.float32(2)) * sum_x + constant * sum_w), zero, constant)
    extent = most - least
    divisor = where(less(zero, extent), extent, one)
    for k in range(search.n_candidates):
        d = np.float32(search.first + (search.last - search.first) * k / max(1, search.n_candidates - 1))
        # what lies beyond the codes is cut off above, on both sides, below, in turn
        below = np.float32(0.5) * np.float32(k % 3) * d
        inverse = spread(high + d) / divisor
        start = zero - least - spread(below / (high + d)) * extent
        start = larger(start, zero) if below_zero else start
        sums = vector_sums(tile, first, weights, inverse, start, top)
        best = _better_fit(sums, sum_w, sum_x, sum_xx, below_zero, best)
    for _ in range(search.n_refits):
        sums = vector_sums(tile, first, weights, vector_inverse(best[1]), best[2], top)
        best = _better_fit(sums, sum_w, sum_x, sum_xx, below_zero, best)
    return best, vector_sums(tile, first, weights, vector_inverse(best[1]), best[2], top), sum_x
