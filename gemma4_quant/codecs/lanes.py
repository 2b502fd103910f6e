"""What all block encoders share: rows side by side in lanes, and the steps of their searches.

A tile holds the same columns of 64 rows, transposed: tile[column, lane]. Every sum over the columns of a block then
runs lane by lane, which LLVM turns into vector instructions without reordering any sum, and the importance of a
column is one number for all lanes. Rows beyond the last are lanes of zeros; they cost time, never change a result.

The error of a block is sum over columns of weight · (x − decoded)². For codes l and a scale a, the best a is
Σ w·x·l / Σ w·l², which lowers the error by (Σ w·x·l)² / Σ w·l² (the gain).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gemma4_quant.compiled import compiled

LANES = 64

Array = npt.NDArray[Any]
TINY = np.float32(1e-30)
HUGE = np.float32(3e38)
"""Larger than any error, and finite, as compiled code assumes."""

# Where several scales fit equally well (a constant block), the rounding of the sums must not decide: sub-blocks
# would settle on different ones, and one super-scale could not serve them all. A scale must win by more.
LARGER = np.float32(1.0000004)
NOISE = np.float32(2e-6)


@compiled(finite=True)
def load_tile(rows: Array, first_row: int, n_rows: int, first_column: int, tile: Array) -> None:
    """Transpose n_rows ≤ 64 rows of a few columns into tile (n_columns, LANES) float32; other lanes become zero."""
    n_columns = tile.shape[0]
    for lane in range(n_rows):
        for i in range(n_columns):
            tile[i, lane] = rows[first_row + lane, first_column + i]
    for lane in range(n_rows, LANES):
        for i in range(n_columns):
            tile[i, lane] = np.float32(0)


@compiled(finite=True)
def extremum(tile: Array, out: Array) -> None:
    """Write the value of largest magnitude of each lane, with its sign, to out (LANES,)."""
    for lane in range(LANES):
        out[lane] = np.float32(0)
    for i in range(tile.shape[0]):
        for lane in range(LANES):
            x = tile[i, lane]
            out[lane] = x if abs(x) > abs(out[lane]) else out[lane]


@compiled(finite=True)
def invert(values: Array, out: Array) -> None:
    """Write 1 / value to out, and 0 where the value is 0."""
    for lane in range(LANES):
        value = values[lane]
        out[lane] = np.float32(1) / value if value != np.float32(0) else np.float32(0)


@compiled(finite=True)
def scale_sums(
    tile: Array, weights: Array, inverse: Array, low: Any, high: Any, sum_ll: Array, sum_xl: Array
) -> None:
    """Round x · inverse to codes in low..high and write Σ w·l² and Σ w·x·l."""
    for lane in range(LANES):
        sum_ll[lane] = np.float32(0)
        sum_xl[lane] = np.float32(0)
    for i in range(tile.shape[0]):
        w = weights[i]
        for lane in range(LANES):
            x = tile[i, lane]
            code = min(max(np.rint(x * inverse[lane]), low), high)
            wl = w * code
            sum_ll[lane] += wl * code
            sum_xl[lane] += wl * x


@compiled(finite=True)
def keep_larger_gain(sum_ll: Array, sum_xl: Array, gain: Array, scale: Array) -> None:
    """Take over the scale of the latest codes where it lowers the error by more than the best so far."""
    for lane in range(LANES):
        ll = sum_ll[lane]
        divisor = ll if ll > np.float32(0) else np.float32(1)
        a = sum_xl[lane] / divisor
        g = a * sum_xl[lane]
        better = ll > np.float32(0) and g > gain[lane] * LARGER
        gain[lane] = g if better else gain[lane]
        scale[lane] = a if better else scale[lane]


@compiled(finite=True)
def scale_error(tile: Array, weights: Array, scale: Array, inverse: Array, low: Any, high: Any, error: Array) -> None:
    """Write the weighted squared error of rounding to scale · (low..high)."""
    for lane in range(LANES):
        error[lane] = np.float32(0)
    for i in range(tile.shape[0]):
        w = weights[i]
        for lane in range(LANES):
            x = tile[i, lane]
            code = min(max(np.rint(x * inverse[lane]), low), high)
            rest = x - scale[lane] * code
            error[lane] += w * rest * rest


@compiled(finite=True)
def scan_scales(
    tile: Array,
    weights: Array,
    low: Any,
    high: Any,
    n_candidates: int,
    first: float,
    last: float,
    n_refits: int,
    work: Array,
    scale: Array,
) -> None:
    """Search the best real scale of each lane for codes in low..high; writes scale (LANES,).

    Candidates put the extremum at low − d and, where that is another scale, at high + d, d from `first` to `last`;
    then the best is refitted to its codes and rounded again n_refits times. work: (5, LANES) float32 to use up.
    """
    top, inverse, sum_ll, sum_xl, gain = work[0], work[1], work[2], work[3], work[4]
    extremum(tile, top)
    for lane in range(LANES):
        top[lane] = top[lane] if abs(top[lane]) > np.float32(1e-20) else np.float32(1e-20)
        gain[lane] = np.float32(0)
        scale[lane] = np.float32(0)
    for k in range(n_candidates):
        d = np.float32(first + (last - first) * k / max(1, n_candidates - 1))
        for side in range(1 if low == -high else 2):
            end = low - d if side == 0 else high + d
            for lane in range(LANES):
                inverse[lane] = end / top[lane]
            scale_sums(tile, weights, inverse, low, high, sum_ll, sum_xl)
            keep_larger_gain(sum_ll, sum_xl, gain, scale)
    for _ in range(n_refits):
        invert(scale, inverse)
        scale_sums(tile, weights, inverse, low, high, sum_ll, sum_xl)
        keep_larger_gain(sum_ll, sum_xl, gain, scale)


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
def keep_smaller_error(
    sums: Array, sum_w: Any, sum_x: Array, sum_xx: Array, below_zero: bool, error: Array, scale: Array, offset: Array
) -> None:
    """Fit scale and offset to the latest codes by least squares; keep them where the error is the least so far.

    sums: rows Σ w·l, Σ w·l², Σ w·x·l. below_zero: the offset may not be negative (x ≈ scale · l − offset reaches
    only from −offset up, as the K types demand).
    """
    for lane in range(LANES):
        sum_l, ll, xl = sums[0, lane], sums[1, lane], sums[2, lane]
        determinant = sum_w * ll - sum_l * sum_l
        usable = determinant > TINY
        divisor = determinant if usable else np.float32(1)
        a = (sum_w * xl - sum_x[lane] * sum_l) / divisor
        m = (xl * sum_l - ll * sum_x[lane]) / divisor
        plain = not usable or a <= np.float32(0) or (below_zero and m < np.float32(0))
        a = xl / max(ll, TINY) if plain else a
        m = np.float32(0) if plain else m
        e = sum_xx[lane] - np.float32(2) * (a * xl - m * sum_x[lane]) + a * a * ll
        e += m * (m * sum_w - np.float32(2) * a * sum_l)
        better = e < error[lane] - NOISE * sum_xx[lane] and a > np.float32(0)
        error[lane] = e if better else error[lane]
        scale[lane] = a if better else scale[lane]
        offset[lane] = m if better else offset[lane]


@compiled(finite=True)
def scan_offsets(
    tile: Array,
    weights: Array,
    high: Any,
    below_zero: bool,
    n_candidates: int,
    first: float,
    last: float,
    n_refits: int,
    work: Array,
    scale: Array,
    offset: Array,
) -> Any:
    """Search the best real scale and offset of each lane for x ≈ scale · (0..high) − offset; returns Σ w.

    Candidates spread the range of x over high + d codes, d from `first` to `last`; the best is refitted n_refits
    times. work: (10, LANES) float32; afterwards rows 4, 5, 6 are Σ w·l, Σ w·l², Σ w·x·l of the best and row 7 Σ w·x.
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
    for k in range(n_candidates):
        d = np.float32(first + (last - first) * k / max(1, n_candidates - 1))
        for lane in range(LANES):
            spread = most[lane] - least[lane]
            inverse[lane] = (high + d) / (spread if spread > np.float32(0) else np.float32(1))
            start[lane] = -least[lane]
        offset_sums(tile, weights, inverse, start, high, sums[0], sums[1], sums[2])
        keep_smaller_error(sums, sum_w, sum_x, sum_xx, below_zero, error, scale, offset)
    for _ in range(n_refits):
        invert(scale, inverse)
        offset_sums(tile, weights, inverse, offset, high, sums[0], sums[1], sums[2])
        keep_smaller_error(sums, sum_w, sum_x, sum_xx, below_zero, error, scale, offset)
    invert(scale, inverse)
    offset_sums(tile, weights, inverse, offset, high, sums[0], sums[1], sums[2])
    return sum_w
