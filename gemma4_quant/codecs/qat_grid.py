"""Weights that already lie on a grid: the integer codes and float16 scales behind them, found exactly.

Quantization-aware training saves weights that are code · scale, rounded to the type of the checkpoint (bfloat16). For
each block this finds codes and a scale that float16 can hold so that code · scale rounds to the very same weights.
Each weight allows the scales that round to it, an interval; the scale must lie in all of them.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.codecs.half import half_bits, half_step, half_value
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled

_TELLING = 8
"""Nonzero weights from which a block tells grids from chance: seven ordinary ones beside the largest all lie on one
of the eight lattices that it allows about once in 10⁷ blocks."""

_N_MAGNITUDES = 9  # of codes: 0 to 8

_SLACK = 1e-12
"""Relative room for the rounding of interval ends; products that end halfway between two weights make them meet."""

_N_STEPS = 8  # the intervals are at most 2⁻⁷ wide, relative to the scale: 8 to 16 float16 values


class BlockState(IntEnum):
    """How a block relates to the grid.

    OFF: it lies on none. NEAR: it lies on one whose scale float16 cannot hold exactly enough. EXACT: every decoded
    weight rounds to the stored one.
    """

    OFF = 0
    NEAR = 1
    EXACT = 2


_NEAR, _EXACT = int(BlockState.NEAR), int(BlockState.EXACT)


@dataclass(frozen=True)
class GridShape:
    """Blocks of `n_weights` sharing a scale, codes from `low` to `high`; scales may be negative."""

    n_weights: int
    low: int
    high: int


@dataclass(frozen=True)
class GridFit:
    """Blocks of rows on a grid.

    scales: (n_rows, n_blocks) float32, values of float16. codes: (n_rows, n_cols) int8.
    states: (n_rows, n_blocks) uint8, BlockState; scales and codes of an OFF block mean nothing.
    telling: (n_rows, n_blocks) bool, whether the block has enough different weights to be no accident on a grid.
    """

    scales: Float32Rows
    codes: npt.NDArray[np.int8]
    states: npt.NDArray[np.uint8]
    telling: npt.NDArray[np.bool_]


def fit_grid(rows: Float32Rows, shape: GridShape, dropped_bits: int) -> GridFit:
    """Find the grid behind the blocks of rows.

    rows: (n_rows, n_cols) float32, finite, n_cols whole blocks. dropped_bits: low bits of a float32 that the stored
    type of the weights has not: 16 for bfloat16, 13 for float16, 0 for float32.
    """
    n_rows, n_columns = rows.shape
    n_blocks = n_columns // shape.n_weights
    fit = GridFit(
        np.zeros((n_rows, n_blocks), np.float32),
        np.zeros((n_rows, n_columns), np.int8),
        np.zeros((n_rows, n_blocks), np.uint8),
        np.zeros((n_rows, n_blocks), np.bool_),
    )
    args = (shape.n_weights, shape.low, shape.high, dropped_bits)
    _fit(np.ascontiguousarray(rows), *args, fit.scales, fit.codes, fit.states, fit.telling)
    return fit


@compiled()
def _fit(
    rows: Array,
    n_weights: int,
    low: int,
    high: int,
    dropped_bits: int,
    scales: Array,
    codes: Array,
    states: Array,
    telling: Array,
) -> None:
    n_rows, n_columns = rows.shape
    most = max(-low, high)
    found = np.empty(n_weights, np.int32)
    for row in range(n_rows):
        for block in range(n_columns // n_weights):
            start = block * n_weights
            x = rows[row, start : start + n_weights]
            largest, n_nonzero = _largest(x)
            if n_nonzero == 0:
                states[row, block] = _EXACT
                continue
            telling[row, block] = n_nonzero >= _TELLING and _differ(x)
            best = -1
            for k in range(1, most + 1):  # the code of the largest weight
                if not _on_lattice(x, largest / np.float32(k), dropped_bits, found):
                    continue
                sign = _sign(found, low, high)
                scale, n_exact = _best_scale(x, found, dropped_bits)
                if sign == 0 or n_exact <= best:
                    continue
                best = n_exact
                scales[row, block] = sign * scale
                for i in range(n_weights):
                    codes[row, start + i] = np.int8(sign * found[i])
                states[row, block] = _EXACT if n_exact == n_weights else _NEAR
                if n_exact == n_weights:
                    break


@compiled()
def _largest(x: Array) -> tuple[np.float32, int]:
    """Return the largest magnitude and how many weights are not zero."""
    largest = np.float32(0)
    n_nonzero = 0
    for i in range(len(x)):
        largest = max(largest, abs(x[i]))
        n_nonzero += x[i] != np.float32(0)
    return largest, n_nonzero


@compiled()
def _differ(x: Array) -> bool:
    differ = False
    for i in range(1, len(x)):
        differ |= x[i] != x[0]
    return differ


@compiled()
def _on_lattice(x: Array, step: np.float32, dropped_bits: int, codes: Array) -> bool:
    """Write weights in steps; tell whether all are whole ones but for the rounding of weights and step."""
    # half a unit in the last place, for the weight and for the step, and some room for this arithmetic
    tolerance = np.float32(2.0 ** (max(dropped_bits, 3) - 23) * 1.02)
    inverse = np.float32(1) / step
    if not np.isfinite(inverse):
        return False
    for i in range(len(x)):
        scaled = np.float32(x[i] * inverse)
        code = np.rint(scaled)
        if abs(scaled - code) > tolerance * abs(code) or (code == np.float32(0) and x[i] != np.float32(0)):
            return False
        codes[i] = np.int32(code)
    return True


@compiled()
def _sign(codes: Array, low: int, high: int) -> int:
    """Return the sign of a scale with which the codes fit low..high, 0 if neither does."""
    least, most = 0, 0
    for i in range(len(codes)):
        least = min(least, codes[i])
        most = max(most, codes[i])
    if least >= low and most <= high:
        return 1
    if -most >= low and -least <= high:
        return -1
    return 0


@compiled()
def _best_scale(x: Array, codes: Array, dropped_bits: int) -> tuple[np.float32, int]:
    """Return the positive float16 scale with which most decoded weights round to x, and how many do.

    Among equals the one nearest to the least-squares scale. The count is -1 when no scale would do.
    """
    least = np.full(_N_MAGNITUDES, np.int64(0x7F800000))  # bits of the smallest and largest weight of each code
    most = np.zeros(_N_MAGNITUDES, np.int64)
    sum_xl, sum_ll = np.float64(0), np.float64(0)
    for i in range(len(x)):
        code = abs(codes[i])
        magnitude = abs(x[i])
        bits = np.int64(np.float32(magnitude).view(np.int32))
        least[code] = min(least[code], bits)
        most[code] = max(most[code], bits)
        sum_xl += np.float64(magnitude) * code
        sum_ll += np.float64(code * code)
    half_unit = 1 << max(dropped_bits - 1, 0)
    lowest, highest = np.float64(0), np.float64(1e300)
    for code in range(1, _N_MAGNITUDES):
        if most[code] > 0:
            lowest = max(lowest, np.float64(np.int32(most[code] - half_unit).view(np.float32)) / code)
            highest = min(highest, np.float64(np.int32(least[code] + half_unit).view(np.float32)) / code)
    if lowest > highest * (1 + _SLACK):
        return np.float32(0), -1
    centre = half_value(half_bits(np.float32(sum_xl / sum_ll)))
    best, n_best = centre, -1
    for attempt in range(2 * _N_STEPS + 1):
        away = (attempt + 1) // 2
        scale = half_step(centre, away if attempt % 2 else -away)
        if attempt > 0 and (scale < lowest * (1 - _SLACK) or scale > highest * (1 + _SLACK)):
            continue
        n_exact = _count_exact(x, codes, scale, dropped_bits)
        if n_exact > n_best:
            best, n_best = scale, n_exact
        if n_exact == len(x):
            break
    if n_best < len(x) and lowest >= highest * (1 - _SLACK):
        return best, -1  # a single scale is left and float16 has not got it: as good as none
    return best, n_best


@compiled()
def _count_exact(x: Array, codes: Array, scale: np.float32, dropped_bits: int) -> int:
    n_exact = 0
    for i in range(len(x)):
        decoded = np.float32(scale * np.float32(codes[i]))
        n_exact += _rounded(decoded, dropped_bits) == x[i]
    return n_exact


@compiled()
def _rounded(value: np.float32, dropped_bits: int) -> Any:
    """Round to a float with fewer bits, to nearest, ties to even."""
    if dropped_bits == 0:
        return value
    bits = np.int64(np.float32(value).view(np.int32))
    magnitude = bits & 0x7FFFFFFF
    odd = (magnitude >> dropped_bits) & 1
    kept = ((magnitude + (1 << (dropped_bits - 1)) - 1 + odd) >> dropped_bits) << dropped_bits
    rounded = np.int32(kept).view(np.float32)
    return -rounded if bits < 0 else rounded
