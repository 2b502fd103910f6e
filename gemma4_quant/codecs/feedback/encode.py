"""Encoding rows with error feedback: panel after panel of 256 columns, each making up for the errors before it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.arrays import ByteRows, Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.checks import checked_rows, empty_blocks
from gemma4_quant.codecs.feedback import products
from gemma4_quant.codecs.feedback.block_parts import SCALAR_TYPES, empty_parts, read_blocks, write_blocks
from gemma4_quant.codecs.feedback.factor import PANEL, FactorBlock, FeedbackFactor, Panel, prepare_factor
from gemma4_quant.codecs.feedback.rounding import descend, round_with_feedback
from gemma4_quant.errors import ShapeError, UnsupportedTypeError
from gemma4_quant.ggml import GgmlType, block_size

FEEDBACK_TYPES = frozenset(SCALAR_TYPES)
"""Types that error feedback can encode: all with one code a weight."""

ROWS_AT_ONCE = 192
"""Rows whose sums are carried along together: whole tiles of the encoders (64 rows) and of the products (6 rows)."""

_NOISE = 1e-5
"""Part of an error that float32 may have got wrong; feedback must win by more."""


@dataclass(frozen=True)
class Sweeps:
    """How often descent goes over the columns: of a panel, before its errors are carried on, and of a whole row.

    widest: the widest block of H for which it goes over whole rows; their gradient takes as long as all feedback.
    """

    of_panel: int
    of_row: int
    widest: int


SWEEPS = {
    Effort.PLAIN: Sweeps(1, 0, 0),
    Effort.FAST: Sweeps(1, 0, 0),
    Effort.BALANCED: Sweeps(3, 1, 2048),
    Effort.BEST: Sweeps(6, 6, 1 << 16),
}

_SAMPLE = 16
"""Of so many rows one has its error without feedback computed in full, for the report, where rows are long."""

_LONG_ROWS = 1024

_NOISE = 1e-5
"""Part of an error that float32 may have got wrong; feedback must win by more."""


@dataclass(frozen=True)
class FeedbackResult:
    """Encoded rows, and their layer-output error tr(ΔW H ΔWᵀ), in the units of H, summed over the rows.

    data (n_rows, row_bytes) uint8. error_after: of data. error_before: of what the type's encoder makes of the same
    rows knowing the diagonal of H only; for more than 1024 columns estimated by the ratio of the two in one of
    sixteen rows. In no row is the error after larger than the error before; that takes no estimate.
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
    rows = checked_rows(rows, kind, SCALAR_TYPES[kind].largest)
    if rows.shape[1] != factor.n_in:
        raise ShapeError(f"rows have {rows.shape[1]} columns, second moments {factor.n_in}")
    if any(block.width % block_size(kind).n_weights for block in factor.blocks):
        raise ShapeError(f"blocks of second moments are not whole blocks of {kind.name}")
    data = empty_blocks(rows, kind)
    before = after = 0.0
    for first in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        data[some], error_before, error_after = _encode_some(rows[some], kind, factor, effort)
        before += error_before
        after += error_after
    return FeedbackResult(data, before * factor.unit, after * factor.unit)


def compile_feedback_kernels(kinds: Iterable[GgmlType]) -> None:
    """Have the kernels of these types compiled, or loaded from the cache of an earlier run, by encoding a row."""
    moments = np.eye(2 * PANEL, dtype=np.float32) + np.float32(0.5)
    factor = prepare_factor([moments])
    rows = np.linspace(-1, 1, 2 * PANEL, dtype=np.float32)[None]
    for kind in kinds:
        encode_with_feedback(rows, kind, factor, Effort.BEST)


_Errors = npt.NDArray[np.float64]


def _encode_some(
    rows: Float32Rows, kind: GgmlType, factor: FeedbackFactor, effort: Effort
) -> tuple[ByteRows, float, float]:
    """Encode up to ROWS_AT_ONCE rows; returns their bytes and the sums of their errors before and after."""
    runs = [_Run(rows[:, _columns(block)].copy(), kind, block, effort) for block in factor.blocks]
    for run in runs:
        run.encode()
    damped = np.sum([run.errors() for run in runs], axis=0)
    after = np.maximum(damped - factor.added * sum(_square(run.out - run.rows) for run in runs), 0)
    data = np.concatenate([run.blocks() for run in runs], axis=1)
    codec = codec_for(kind)
    plain = codec.encode(rows, factor.importance, effort)
    change = codec.decode(plain, factor.n_in) - rows
    worse = _not_better(after + _NOISE * damped, change, factor)
    regular = np.arange(0, len(rows), _SAMPLE if factor.n_in > _LONG_ROWS else 1)
    sample = np.union1d(worse, regular)
    before = _errors(change[sample], factor)
    if worse.size:
        data[worse] = plain[worse]
        after[worse] = before[np.searchsorted(sample, worse)]
    return data, _scaled_up(before, after, sample), float(after.sum())


def _columns(block: FactorBlock) -> slice:
    return slice(block.first, block.first + block.width)


def _square(change: Float32Rows) -> _Errors:
    return products.row_products(change, change)


def _errors(change: Float32Rows, factor: FeedbackFactor) -> _Errors:
    """Return change H changeᵀ of each row, without damping."""
    total = -factor.added * _square(change)
    for block in factor.blocks:
        rest = np.zeros((len(change), block.width), np.float32)
        products.add_upper(change[:, _columns(block)].copy(), block.upper, 0, rest)
        total += _square(rest)
    return np.maximum(total, 0)


def _scaled_up(before: _Errors, after: _Errors, sample: npt.NDArray[np.intp]) -> float:
    """Estimate the sum of `before`, known for a sample of the rows of `after`; not less than the sum of `after`."""
    known = float(after[sample].sum())
    ratio = float(before.sum()) / known if known > 0 else 1.0
    return max(ratio, 1.0) * float(after.sum())


def _not_better(after: _Errors, change: Float32Rows, factor: FeedbackFactor) -> npt.NDArray[np.intp]:
    """Return the numbers of rows whose error change H changeᵀ, without damping, is not above `after`.

    Errors are sums of squares over the columns of change @ R. A row is done with once some columns exceed what is to
    be exceeded; those that promise most for their work come first.
    """
    limit = after + factor.added * _square(change)
    left = np.arange(len(change))
    total = np.zeros(len(change))
    for block, panel in _by_yield(factor):
        rest = np.zeros((len(left), panel.width), np.float32)
        products.add_upper(change[:, _columns(block)], block.upper, panel.first - block.first, rest)
        total[left] += _square(rest)
        open_ = total[left] <= limit[left]
        if 2 * open_.sum() <= len(left):
            left, change = left[open_], change[open_]
        if not len(left):
            return left
    return left[total[left] <= limit[left]]


def _by_yield(factor: FeedbackFactor) -> list[tuple[FactorBlock, Panel]]:
    """Return all panels with their blocks, by the part of a row's error to expect in them for each product."""
    places = [(block, panel) for block in factor.blocks for panel in block.panels]
    return sorted(
        places, key=lambda place: place[1].energy / (place[1].first + place[1].width - place[0].first), reverse=True
    )


class _Run:
    """Rows on their way through one block of H.

    rows, out, sums, rest (n_rows, width): weights, decoded weights, (out − rows) R of the columns done so far, and
    the whole of it. gradient: (out − rows) H, None before descent over whole rows.
    """

    def __init__(self, rows: Float32Rows, kind: GgmlType, block: FactorBlock, effort: Effort) -> None:
        self.rows, self.kind, self.block, self.effort = rows, kind, block, effort
        self.scalar = SCALAR_TYPES[kind]
        self.parts = empty_parts(len(rows), block.width, self.scalar.form)
        self.out, self.rest = np.empty_like(rows), np.empty_like(rows)
        self.sums = np.zeros_like(rows)
        self.gradient: Float32Rows | None = None
        self._room = np.empty((6, len(rows) * PANEL), np.float32)  # for the arrays of a panel

    def encode(self) -> None:
        """Round all panels in turn, then go over the whole rows again."""
        sweeps = SWEEPS[self.effort]
        for panel in self.block.panels:
            self._round(panel, sweeps.of_panel)
        if sweeps.of_row and len(self.block.panels) > 1 and self.block.width <= sweeps.widest:
            self._descend(sweeps.of_row)

    def blocks(self) -> ByteRows:
        """Return the bytes of the rows."""
        data = empty_blocks(self.rows, self.kind)
        write_blocks(self.parts, self.scalar.form, data)
        return data

    def errors(self) -> _Errors:
        """Return (out − rows) H (out − rows)ᵀ of each row, with damping."""
        if self.gradient is None:
            return _square(self.rest)
        return products.row_products(self.out - self.rows, self.gradient)

    def _round(self, panel: Panel, n_sweeps: int) -> None:
        """Choose scales and codes of a panel for what the errors before it leave to be desired."""
        first = panel.first - self.block.first
        columns = slice(first, first + panel.width)
        sums, wanted, left, out, rest, gradient = self._room[:, : len(self.rows) * panel.width].reshape(
            -1, len(self.rows), panel.width
        )
        np.negative(self.sums[:, columns], out=sums)
        wanted[:] = self.rows[:, columns]
        products.add_triangular(sums, panel.inverse, True, wanted)
        form, grid = self.scalar.form, self.scalar.grid
        products.limit(wanted, np.float32(self.scalar.largest))
        read_blocks(codec_for(self.kind).encode(wanted, panel.weights, self.effort), form, first, self.parts)
        left[:] = wanted
        round_with_feedback(left, panel.root, panel.inverse, form, grid, first, self.parts, out, rest)
        gradient[:] = 0
        products.add_triangular(rest, panel.root.T, False, gradient)
        descend(panel.moments, form, grid, (0, n_sweeps), first, self.parts, out, gradient)
        np.subtract(out, wanted, out=left)
        rest[:] = 0  # for all rows anew: whether other rows moved must not matter
        products.add_triangular(left, panel.root, True, rest)
        self.out[:, columns], self.rest[:, columns] = out, rest
        np.subtract(out, self.rows[:, columns], out=left)
        products.carry_forward(left, first, self.block.upper, self.sums)

    def _descend(self, n_sweeps: int) -> None:
        """Go over all panels again with the whole of H."""
        block, form, grid = self.block, self.scalar.form, self.scalar.grid
        self.gradient = np.zeros_like(self.out)
        products.add_lower(self.rest, block.lower, self.gradient)
        for sweep in range(1, n_sweeps + 1):
            for panel in block.panels:
                first = panel.first - block.first
                columns = slice(first, first + panel.width)
                out, slopes = self.out[:, columns].copy(), self.gradient[:, columns].copy()
                moments = np.ascontiguousarray(block.moments[columns, columns])
                if descend(moments, form, grid, (sweep, sweep + 1), first, self.parts, out, slopes):
                    products.spread(out - self.out[:, columns], first, block.moments, self.gradient)
                    self.out[:, columns] = out
