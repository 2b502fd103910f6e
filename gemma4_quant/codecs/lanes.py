"""What all block encoders share: rows side by side in lanes.

A tile holds the same columns of 64 rows, transposed: tile[column, lane]. Every sum over the columns of a block then
runs lane by lane, which LLVM turns into vector instructions without reordering any sum, and the importance of a
column is one number for all lanes. Rows beyond the last are lanes of zeros; they cost time, never change a result.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gemma4_quant.compiled import compiled

LANES = 64
_ROWS_AT_ONCE = 8
"""Rows transposed together: their values of a column fill one vector register of 32 bytes."""

Array = npt.NDArray[Any]
TINY = np.float32(1e-30)
HUGE = np.float32(3e38)
"""Larger than any error, and finite, as compiled code assumes."""


@compiled()
def n_tiles(shape: tuple[int, int], size: int) -> int:
    """Return how many tiles of `size` columns cover rows of a shape."""
    return (shape[0] + LANES - 1) // LANES * (shape[1] // size)


@compiled()
def tile_at(number: int, shape: tuple[int, int], size: int) -> tuple[int, int, int]:
    """Return where a tile lies: its first row, its number of rows, the number of its block in those rows."""
    n_blocks = shape[1] // size
    first_row = number // n_blocks * LANES
    return first_row, min(LANES, shape[0] - first_row), number % n_blocks


@compiled(finite=True)
def load_tile(rows: Array, first_row: int, n_rows: int, first_column: int, tile: Array) -> None:
    """Transpose n_rows ≤ 64 rows of a few columns into tile (n_columns, LANES) float32; other lanes become zero."""
    n_columns = tile.shape[0]
    n_whole = n_rows - n_rows % _ROWS_AT_ONCE
    for first in range(0, n_whole, _ROWS_AT_ONCE):
        few = rows[first_row + first : first_row + first + _ROWS_AT_ONCE, first_column : first_column + n_columns]
        for i in range(n_columns):
            for lane in range(_ROWS_AT_ONCE):
                tile[i, first + lane] = few[lane, i]
    for lane in range(n_whole, n_rows):
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
