"""Searching a scale for the codes of a block, x ≈ scale · code, in all lanes of a tile.

The error of a block is Σ w·(x − decoded)² over its columns. For codes l the best scale is Σ w·x·l / Σ w·l², which
lowers the error from Σ w·x² by (Σ w·x·l)² / Σ w·l² (the gain).
"""

import numpy as np

from gemma4_quant.codecs.grids import Grid, nearest
from gemma4_quant.codecs.lanes import LANES, Array, extremum, invert
from gemma4_quant.codecs.search import Search
from gemma4_quant.compiled import compiled

# Where several scales fit equally well (a constant block), the rounding of the sums must not decide: sub-blocks
# would settle on different ones, and one super-scale could not serve them all. A scale must win by more.
_LARGER = np.float32(1.0000004)


@compiled(finite=True)
def scale_sums(tile: Array, weights: Array, inverse: Array, grid: Grid, sum_ll: Array, sum_xl: Array) -> None:
    """Round x · inverse to the grid's codes and write Σ w·l² and Σ w·x·l."""
    for lane in range(LANES):
        sum_ll[lane] = np.float32(0)
        sum_xl[lane] = np.float32(0)
    for i in range(tile.shape[0]):
        w = weights[i]
        for lane in range(LANES):
            x = tile[i, lane]
            code = nearest(x * inverse[lane], grid)
            wl = w * code
            sum_ll[lane] += wl * code
            sum_xl[lane] += wl * x


@compiled(finite=True)
def scale_error(tile: Array, weights: Array, scale: Array, inverse: Array, grid: Grid, error: Array) -> None:
    """Write the weighted squared error of rounding to scale · codes."""
    for lane in range(LANES):
        error[lane] = np.float32(0)
    for i in range(tile.shape[0]):
        w = weights[i]
        for lane in range(LANES):
            x = tile[i, lane]
            code = nearest(x * inverse[lane], grid)
            rest = x - scale[lane] * code
            error[lane] += w * rest * rest


@compiled(finite=True)
def scan_scales(tile: Array, weights: Array, grid: Grid, search: Search, work: Array, scale: Array) -> None:
    """Search the best real scale of each lane; writes scale (LANES,).

    Candidates put the extremum at high + d and, where the grid has another end, at low − d; then the best is
    refitted. A grid that is the same on both sides gets positive scales. work: (5, LANES) float32 to use up.
    """
    top, inverse, sum_ll, sum_xl, gain = work[0], work[1], work[2], work[3], work[4]
    one_sided = grid.low == -grid.high
    extremum(tile, top)
    for lane in range(LANES):
        top[lane] = abs(top[lane]) if one_sided else top[lane]
        top[lane] = top[lane] if abs(top[lane]) > np.float32(1e-20) else np.float32(1e-20)
        gain[lane] = np.float32(0)
        scale[lane] = np.float32(0)
    for k in range(search.n_candidates):
        d = np.float32(search.first + (search.last - search.first) * k / max(1, search.n_candidates - 1))
        for side in range(1 if one_sided else 2):
            end = grid.high + d if side == 0 else grid.low - d
            for lane in range(LANES):
                inverse[lane] = end / top[lane]
            scale_sums(tile, weights, inverse, grid, sum_ll, sum_xl)
            _keep_larger_gain(sum_ll, sum_xl, gain, scale)
    for _ in range(search.n_refits):
        invert(scale, inverse)
        scale_sums(tile, weights, inverse, grid, sum_ll, sum_xl)
        _keep_larger_gain(sum_ll, sum_xl, gain, scale)


@compiled(finite=True)
def _keep_larger_gain(sum_ll: Array, sum_xl: Array, gain: Array, scale: Array) -> None:
    """Take over the scale of the latest codes where it lowers the error by more than the best so far."""
    for lane in range(LANES):
        ll = sum_ll[lane]
        divisor = ll if ll > np.float32(0) else np.float32(1)
        a = sum_xl[lane] / divisor
        g = a * sum_xl[lane]
        better = ll > np.float32(0) and g > gain[lane] * _LARGER
        gain[lane] = g if better else gain[lane]
        scale[lane] = a if better else scale[lane]
