"""Checks and preparations that every encoder begins with."""

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.half import LARGEST
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled
from gemma4_quant.errors import NonFiniteError, ShapeError
from gemma4_quant.ggml import GgmlType, row_bytes

_LEAST_WEIGHT = 1e-7
"""Least importance of a column relative to the mean: a column never seen must still decode to something near."""


def checked_rows(rows: Float32Rows, kind: GgmlType, limit: float = LARGEST) -> Float32Rows:
    """Return rows as C-contiguous float32.

    Raises ShapeError when they are not whole blocks, NonFiniteError when a weight is NaN, infinite or beyond
    `limit` (its scale could not hold it).
    """
    if rows.ndim != 2:
        raise ShapeError(f"rows must be (n_rows, n_cols), not {rows.shape}")
    row_bytes(kind, rows.shape[1])
    rows = np.ascontiguousarray(rows, np.float32)
    if _largest_bits(rows.view(np.uint32)) <= np.float32(limit).view(np.uint32):
        return rows
    row, column = np.argwhere(~(np.abs(rows) <= limit))[0]
    value = rows[row, column]
    if np.isfinite(value):
        raise NonFiniteError(
            f"the weight {value:g} in row {row}, column {column}, overflows {kind.name}, whose largest is {limit:g}; "
            "use bf16 or f32"
        )
    raise NonFiniteError(f"the weight in row {row}, column {column}, is {value}; the checkpoint is damaged")


def normalised_importance(importance: Float32Row | None, n_columns: int) -> Float32Row:
    """Return a positive weight for each column, about 1 on average, (n_columns,) float32.

    Importance is divided by a power of two, which rounds nothing. All zero means that nothing is known and counts as
    uniform. Raises ShapeError for another length, NonFiniteError for values that are negative, NaN or infinite.
    """
    if importance is None:
        return np.ones(n_columns, np.float32)
    if importance.shape != (n_columns,):
        raise ShapeError(f"importance has shape {importance.shape}, rows have {n_columns} columns")
    wide = importance.astype(np.float64)
    if not np.isfinite(wide).all() or wide.min() < 0:
        column = int(np.argmin(np.isfinite(wide) & (wide >= 0)))
        raise NonFiniteError(f"the importance of column {column} is {importance[column]}; calibrate again")
    mean = wide.mean()
    if mean == 0:
        return np.ones(n_columns, np.float32)
    power = 2.0 ** np.round(np.log2(mean))
    weights: Float32Row = np.maximum(wide / power, _LEAST_WEIGHT).astype(np.float32)
    return weights


def empty_blocks(rows: Float32Rows, kind: GgmlType) -> ByteRows:
    """Return room for the encoded rows, (n_rows, row_bytes) uint8."""
    return np.empty((len(rows), row_bytes(kind, rows.shape[1])), np.uint8)


@compiled()
def _largest_bits(bits: Array) -> np.uint32:
    """Return the largest magnitude among float32 given as uint32 (n_rows, n_cols), as bits; NaN exceeds infinity."""
    largest = np.uint32(0)
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            largest = max(largest, bits[row, column] & np.uint32(0x7FFFFFFF))
    return largest
