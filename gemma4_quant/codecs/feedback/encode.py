"""Encoding rows with error feedback: panel after panel of 256 columns, each making up for the errors before it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.arrays import ByteRows, Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks
from gemma4_quant.codecs.feedback import products
from gemma4_quant.codecs.feedback.block_parts import SCALAR_TYPES, empty_parts, read_blocks, write_blocks
from gemma4_quant.codecs.feedback.factor import FactorBlock, FeedbackFactor, Panel
from gemma4_quant.codecs.feedback.rounding import descend, round_with_feedback
from gemma4_quant.errors import ShapeError, UnsupportedTypeError
from gemma4_quant.ggml import GgmlType, row_bytes

FEEDBACK_TYPES = frozenset(SCALAR_TYPES)
"""Types that error feedback can encode: all with one code a weight."""

ROWS_AT_ONCE = 192
"""Rows whose sums are carried along together: whole tiles of the encoders (64 rows) and of the products (6 rows)."""

_NOISE = 1e-5
"""Part of an error that float32 may have got wrong; feedback must win by more."""


@dataclass(frozen=True)
class Sweeps:
    """How often descent goes over the columns: of a panel, before its errors are carried on, and of a whole row."""

    of_panel: int
    of_row: int


SWEEPS = {
    Effort.PLAIN: Sweeps(1, 0),
    Effort.FAST: Sweeps(1, 0),
    Effort.BALANCED: Sweeps(3, 1),
    Effort.BEST: Sweeps(6, 6),
}


@dataclass(frozen=True)
class FeedbackResult:
    """Encoded rows, and their layer-output error tr(ΔW H ΔWᵀ), in the units of H, summed over the rows.

    data (n_rows, row_bytes) uint8. error_before: with the encoder that knows the diagonal of H only. error_after: of
    data; never more.
    """

    data: ByteRows
    error_before: float
    error_after: float


def encode_with_feedback(
    rows: Float32Rows, kind: GgmlType, factor: FeedbackFactor, effort: Effort = Effort.BALANCED
) -> FeedbackResult:
    """Encode rows of a matrix, given the second moments of its inputs.

    rows (n_rows, n_in) float32. Each row is encoded on its own, so that the bytes do not depend on which rows are
    encoded together; multiples of ROWS_AT_ONCE take the least time. A row for which feedback does not lower the error
    keeps what the encoder without it gives. Releases the GIL for the bulk of its work.
    Raises UnsupportedTypeError for types not in FEEDBACK_TYPES, ShapeError where rows do not fit blocks or factor,
    NonFiniteError as the type's encoder does.
    """
    if kind not in SCALAR_TYPES:
        raise UnsupportedTypeError(f"{kind.name} has no code for each weight; error feedback cannot encode it")
    scalar = SCALAR_TYPES[kind]
    rows = checked_rows(rows, kind, scalar.largest)
    if rows.shape[1] != factor.n_in:
        raise ShapeError(f"rows have {rows.shape[1]} columns, second moments {factor.n_in}")
    data = empty_blocks(rows, kind)
    before = after = 0.0
    for first in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        data[some], error_before, error_after = _encode_some(rows[some], kind, factor, effort)
        before += float(error_before.sum())
        after += float(error_after.sum())
    return FeedbackResult(data, before * factor.unit, after * factor.unit)


_Errors = npt.NDArray[np.float64]


def _encode_some(
    rows: Float32Rows, kind: GgmlType, factor: FeedbackFactor, effort: Effort
) -> tuple[ByteRows, _Errors, _Errors]:
    """Encode up to ROWS_AT_ONCE rows; returns their bytes and the errors of each row before and after."""
    codec = codec_for(kind)
    plain = codec.encode(rows, factor.importance, effort)
    change = codec.decode(plain, factor.n_in) - rows
    data = np.empty_like(plain)
    before, after, noise = (np.zeros(len(rows)) for _ in range(3))
    at = 0
    for block in factor.blocks:
        columns = slice(block.first, block.first + block.width)
        run = _Run(np.ascontiguousarray(rows[:, columns]), kind, block, effort)
        run.encode()
        before += _error(np.ascontiguousarray(change[:, columns]), block, factor.added)[1]
        damped, raw = _error(run.out - run.rows, block, factor.added)
        after += raw
        noise += damped * _NOISE
        n_bytes = row_bytes(kind, block.width)
        data[:, at : at + n_bytes] = run.blocks()
        at += n_bytes
    better = after + noise < before
    data[~better] = plain[~better]
    return data, before, np.where(better, after, before)


def _error(change: Float32Rows, block: FactorBlock, added: float) -> tuple[_Errors, _Errors]:
    """Return change H changeᵀ of each row, with damping and without."""
    rest = np.zeros_like(change)
    products.add_upper(change, block.upper, rest)
    damped = products.row_errors(rest, rest)
    return damped, np.maximum(damped - added * products.row_errors(change, change), 0)


class _Run:
    """Rows on their way through one block of H.

    rows, out, sums, rest (n_rows, width): weights, decoded weights, (out − rows) R so far, and the whole of it.
    """

    def __init__(self, rows: Float32Rows, kind: GgmlType, block: FactorBlock, effort: Effort) -> None:
        self.rows, self.kind, self.block, self.effort = rows, kind, block, effort
        self.scalar = SCALAR_TYPES[kind]
        self.parts = empty_parts(len(rows), block.width, self.scalar.form)
        self.out, self.rest = np.empty_like(rows), np.empty_like(rows)
        self.sums = np.zeros_like(rows)

    def encode(self) -> None:
        """Round all panels in turn, then go over the whole rows again."""
        sweeps = SWEEPS[self.effort]
        for panel in self.block.panels:
            self._round(panel, sweeps.of_panel)
            first = panel.first - self.block.first
            columns = slice(first, first + panel.width)
            change = self.out[:, columns] - self.rows[:, columns]
            products.carry_forward(change, first, self.block.upper, self.sums)
        if sweeps.of_row and len(self.block.panels) > 1:
            self._descend(sweeps.of_row)

    def blocks(self) -> ByteRows:
        """Return the bytes of the rows."""
        data = empty_blocks(self.rows, self.kind)
        write_blocks(self.parts, self.scalar.form, data)
        return data

    def _round(self, panel: Panel, n_sweeps: int) -> None:
        """Choose scales and codes of a panel for what the errors before it leave to be desired."""
        first = panel.first - self.block.first
        columns = slice(first, first + panel.width)
        wanted = np.ascontiguousarray(self.rows[:, columns])
        products.add_triangular(-self.sums[:, columns], panel.inverse, True, wanted)
        form, grid, largest = self.scalar.form, self.scalar.grid, np.float32(self.scalar.largest)
        np.clip(wanted, -largest, largest, out=wanted)
        found = codec_for(self.kind).encode(wanted, panel.weights, self.effort)
        read_blocks(found, form, first, self.parts)
        start = wanted.copy()
        round_with_feedback(wanted, panel.root, panel.inverse, form, grid, first, self.parts, self.out, self.rest)
        if not n_sweeps:
            return
        gradient = np.zeros_like(self.out)
        slopes = np.zeros_like(wanted)
        products.add_triangular(np.ascontiguousarray(self.rest[:, columns]), panel.root.T, False, slopes)
        gradient[:, columns] = slopes
        if descend(panel.moments, form, grid, n_sweeps, first, self.parts, self.out, gradient):
            rest = np.zeros_like(wanted)
            products.add_triangular(self.out[:, columns] - start, panel.root, True, rest)
            self.rest[:, columns] = rest

    def _descend(self, n_sweeps: int) -> None:
        """Go over all panels again with the whole of H."""
        block, form, grid = self.block, self.scalar.form, self.scalar.grid
        gradient = np.zeros_like(self.out)
        products.add_lower(self.rest, block.lower, gradient)
        for _ in range(n_sweeps):
            moved = False
            for panel in block.panels:
                first = panel.first - block.first
                columns = slice(first, first + panel.width)
                old = self.out[:, columns].copy()
                moments = products.moments_between(block.moments, block.width, first, panel.width)
                if descend(moments, form, grid, 1, first, self.parts, self.out, gradient):
                    products.spread(self.out[:, columns] - old, first, block.moments, gradient)
                    moved = True
            if not moved:
                return
