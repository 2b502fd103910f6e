"""Products of rows with parts of R, Rᵀ and H, in the strips that FactorBlock keeps."""

import numpy as np

from gemma4_quant.codecs.feedback.factor import lower_triangle_at, triangle_at
from gemma4_quant.codecs.feedback.matrix_tiles import STRIP, add_product, packed_strip
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled

_PART = 256
"""Rows of a strip used at a time: 16 KiB."""

_CHAINS = 16
"""Sums kept apart, so that they are formed in vectors."""


@compiled()
def add_triangular(left: Array, matrix: Array, upper: bool, out: Array) -> None:
    """Add left (n_rows, n) @ matrix (n, n) to out (n_rows, n); the matrix is upper triangular, or else lower."""
    n = len(matrix)
    packed = np.empty(n * STRIP, np.float32)
    for column in range(0, n, STRIP):
        first, stop = (0, column + STRIP) if upper else (column, n)
        packed_strip(matrix, first, stop - first, column, packed, 0)
        add_product(left[:, first:stop], packed, 0, out[:, column : column + STRIP])


@compiled()
def carry_forward(change: Array, first: int, upper: Array, sums: Array) -> None:
    """Add change (n_rows, n), errors of columns from `first` on, times R to the sums of all columns after them.

    upper: FactorBlock.upper. sums (n_rows, width).
    """
    after = first + change.shape[1]
    for column in range(after, sums.shape[1], STRIP):
        at = triangle_at(column // STRIP) + first * STRIP
        add_product(change, upper, at, sums[:, column : column + STRIP])


@compiled()
def _add_long(left: Array, packed: Array, at: int, out: Array) -> None:
    """Add left @ strip to out like add_product, a part at a time that stays in the nearest cache."""
    n = left.shape[1]
    for first in range(0, n, _PART):
        stop = min(first + _PART, n)
        add_product(left[:, first:stop], packed, at + first * STRIP, out)


@compiled()
def add_upper(change: Array, upper: Array, first: int, out: Array) -> None:
    """Add change (n_rows, width) @ R to out (n_rows, n), of which only n columns from `first` on are wanted."""
    for column in range(0, out.shape[1], STRIP):
        stop = first + column + STRIP
        at = triangle_at((first + column) // STRIP)
        _add_long(change[:, :stop], upper, at, out[:, column : column + STRIP])


@compiled()
def add_lower(rest: Array, lower: Array, out: Array) -> None:
    """Add rest (n_rows, width) @ Rᵀ to out."""
    width = rest.shape[1]
    for column in range(0, width, STRIP):
        at = lower_triangle_at(column // STRIP, width)
        _add_long(rest[:, column:], lower, at, out[:, column : column + STRIP])


@compiled(finite=True)
def spread(change: Array, first: int, moments: Array, gradient: Array) -> None:
    """Add change (n_rows, n), moves of columns from `first` on, times H to the gradient of all columns.

    Few columns move, one in a hundred, so each is added on its own. moments (width, width); gradient (n_rows, width).
    """
    width = gradient.shape[1]
    for row in range(change.shape[0]):
        target = gradient[row]
        for i in range(change.shape[1]):
            step = change[row, i]
            if step != np.float32(0):
                line = moments[first + i]
                for k in range(width):
                    target[k] += step * line[k]


@compiled()
def row_products(left: Array, right: Array) -> Array:
    """Return Σ left · right of each row, (n_rows,) float64."""
    out = np.zeros(left.shape[0], np.float64)
    for row in range(left.shape[0]):
        x, y = left[row], right[row]
        sums = np.zeros(_CHAINS, np.float64)
        for first in range(0, len(x), _CHAINS):
            for k in range(_CHAINS):
                sums[k] += np.float64(x[first + k]) * np.float64(y[first + k])
        out[row] = sums.sum()
    return out


@compiled()
def limit(values: Array, largest: np.float32) -> None:
    """Cut values (n_rows, n) off at ±largest."""
    for row in range(values.shape[0]):
        line = values[row]
        for i in range(len(line)):
            line[i] = min(max(line[i], -largest), largest)
