"""Products of rows with parts of R, Rᵀ and H, in the strips that FactorBlock keeps."""

import numpy as np

from gemma4_quant.codecs.feedback.factor import lower_triangle_at, triangle_at
from gemma4_quant.codecs.feedback.matrix_tiles import STRIP, add_product, packed_strip
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled


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
def add_upper(errors: Array, upper: Array, out: Array) -> None:
    """Add errors (n_rows, width) @ R to out."""
    for column in range(0, errors.shape[1], STRIP):
        stop = column + STRIP
        add_product(errors[:, :stop], upper, triangle_at(column // STRIP), out[:, column:stop])


@compiled()
def add_lower(rest: Array, lower: Array, out: Array) -> None:
    """Add rest (n_rows, width) @ Rᵀ to out."""
    width = rest.shape[1]
    for column in range(0, width, STRIP):
        at = lower_triangle_at(column // STRIP, width)
        add_product(rest[:, column:], lower, at, out[:, column : column + STRIP])


@compiled()
def spread(change: Array, first: int, moments: Array, gradient: Array) -> None:
    """Add change (n_rows, n), moves of columns from `first` on, times H to the gradient of all other columns.

    moments: FactorBlock.moments. gradient (n_rows, width).
    """
    width, after = gradient.shape[1], first + change.shape[1]
    for column in range(0, width, STRIP):
        if first <= column < after:
            continue
        at = column * width + first * STRIP
        add_product(change, moments, at, gradient[:, column : column + STRIP])


@compiled()
def moments_between(moments: Array, width: int, first: int, n: int) -> Array:
    """Return H[first : first + n, first : first + n] from its strips."""
    out = np.empty((n, n), np.float32)
    for column in range(0, n, STRIP):
        at = (first + column) * width
        for i in range(n):
            for k in range(STRIP):
                out[i, column + k] = moments[at + (first + i) * STRIP + k]
    return out


@compiled()
def row_errors(left: Array, right: Array) -> Array:
    """Return Σ left · right of each row, (n_rows,) float64."""
    out = np.zeros(left.shape[0], np.float64)
    for row in range(left.shape[0]):
        total = 0.0
        for i in range(left.shape[1]):
            total += np.float64(left[row, i]) * np.float64(right[row, i])
        out[row] = total
    return out
