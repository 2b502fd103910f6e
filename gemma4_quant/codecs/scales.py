"""Searching a scale for the codes of a block, x ≈ scale · code, in all lanes of a tile.

The error of a block is Σ w·(x − decoded)² over its columns. For codes l the best scale is Σ w·x·l / Σ w·l², which
lowers the error from Σ w·x² by (Σ w·x·l)² / Σ w·l² (the gain).
"""

from typing import Any

import numpy as np

from gemma4_quant.codecs.grids import Grid, nearest
from gemma4_quant.codecs.lanes import LANES, Array
from gemma4_quant.codecs.search import Search
from gemma4_quant.codecs.vectors import (
    WIDTH,
    Vector,
    both,
    larger,
    less,
    load,
    spread,
    store,
    vector_inverse,
    where,
)
from gemma4_quant.compiled import compiled

# Where several scales fit equally well (a constant block), the rounding of the sums must not decide: sub-blocks
# would settle on different ones, and one super-scale could not serve them all. A scale must win by more.
_LARGER = np.float32(1.0000004)


@compiled(finite=True)
def vector_scale_sums(tile: Array, first: int, weights: Array, inverse: Vector, grid: Grid) -> Any:
    """Round x · inverse to the grid's codes and return Σ w·l² and Σ w·x·l of WIDTH lanes."""
    sum_ll = sum_xl = spread(np.float32(0))
    for i in range(tile.shape[0]):
        w, x = spread(weights[i]), load(tile[i], first)
        code = nearest(x * inverse, grid)
        wl = w * code
        sum_ll = sum_ll + wl * code
        sum_xl = sum_xl + wl * x
    return sum_ll, sum_xl


@compiled(finite=True)
def scale_sums(tile: Array, weights: Array, inverse: Array, grid: Grid, sum_ll: Array, sum_xl: Array) -> None:
    """Round x · inverse to the grid's codes and write Σ w·l² and Σ w·x·l."""
    for first in range(0, LANES, WIDTH):
        sums = vector_scale_sums(tile, first, weights, load(inverse, first), grid)
        store(sum_ll, first, sums[0])
        store(sum_xl, first, sums[1])


@compiled(finite=True)
def scale_error(tile: Array, weights: Array, scale: Array, inverse: Array, grid: Grid, error: Array) -> None:
    """Write the weighted squared error of rounding to scale · codes."""
    for first in range(0, LANES, WIDTH):
        a, per = load(scale, first), load(inverse, first)
        total = spread(np.float32(0))
        for i in range(tile.shape[0]):
            x = load(tile[i], first)
            rest = x - a * nearest(x * per, grid)
            total = total + spread(weights[i]) * rest * rest
        store(error, first, total)


@compiled(finite=True)
def scan_scales(tile: Array, weights: Array, grid: Grid, search: Search, scale: Array) -> None:
    """Search the best real scale of each lane; writes scale (LANES,).

    Candidates put the extremum at high + d and, where the grid has another end, at low − d; then the best is
    refitted. A grid that is the same on both sides gets positive scales.
    """
    one_sided = grid.low == -grid.high
    zero, least = spread(np.float32(0)), spread(np.float32(1e-20))
    for first in range(0, LANES, WIDTH):
        top = _vector_extremum(tile, first)
        size = larger(top, zero - top)
        top = size if one_sided else top
        top = where(less(least, size), top, least)
        best = (zero, zero)
        for k in range(search.n_candidates):
            d = np.float32(search.first + (search.last - search.first) * k / max(1, search.n_candidates - 1))
            for side in range(1 if one_sided else 2):
                end = grid.high + d if side == 0 else grid.low - d
                best = _larger_gain(vector_scale_sums(tile, first, weights, spread(end) / top, grid), best)
        for _ in range(search.n_refits):
            best = _larger_gain(vector_scale_sums(tile, first, weights, vector_inverse(best[1]), grid), best)
        store(scale, first, best[1])


@compiled(finite=True)
def _vector_extremum(tile: Array, first: int) -> Any:
    """Return the value of largest magnitude of WIDTH lanes, with its sign, the first of several."""
    zero = spread(np.float32(0))
    top = size = zero
    for i in range(tile.shape[0]):
        x = load(tile[i], first)
        magnitude = larger(x, zero - x)
        is_larger = less(size, magnitude)
        top, size = where(is_larger, x, top), larger(size, magnitude)
    return top


@compiled(finite=True)
def _larger_gain(sums: Any, best: Any) -> Any:
    """Return gain and scale of these sums where they lower the error by more than the best so far, else the best."""
    sum_ll, sum_xl = sums
    zero = spread(np.float32(0))
    usable = less(zero, sum_ll)
    a = sum_xl / where(usable, sum_ll, spread(np.float32(1)))
    gain = a * sum_xl
    better = both(usable, less(best[0] * spread(_LARGER), gain))
    return where(better, gain, best[0]), where(better, a, best[1])
