"""One tensor's errors, added up over its tiles and judged by the limits of its type."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, isfinite, log10, sqrt

import numpy as np
import numpy.typing as npt

from gemma4_quant.ggml import is_quantized
from gemma4_quant.model import Tensor
from gemma4_quant.verification.limits import LEAST_STRETCHES, Limit, limit_of
from gemma4_quant.verification.row_statistics import RowStatistics, empty_histogram, typical_error
from gemma4_quant.writing.tiles import Tile

_NAMED = 3
"""How many rows or experts a message names."""


@dataclass(frozen=True)
class TensorResult:
    """How one tensor compares.

    shape: as GGUF writes it, input features first. relative_error: root of squared error over squared weights,
    snr_db the same in decibels, None when there is no error. typical_error: of the middle one of all stretches of 256
    weights. worst_row, worst_row_error: the row, counted through all matrices, with the largest relative error.
    gain: Σ x·w / Σ x² over all weights, x decoded and w original; None when all are zero. n_non_finite: weights that
    are NaN or infinite. is_exact: as near the original as the type can be (float types), or equal to it (blocks).
    """

    name: str
    type: str
    shape: tuple[int, ...]
    relative_error: float
    snr_db: float | None
    typical_error: float
    worst_row: int
    worst_row_error: float
    gain: float | None
    n_non_finite: int
    is_exact: bool
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """A tensor of the file and its original, of the same shape."""

    tensor: Tensor
    original: Tensor

    @property
    def limit(self) -> Limit | None:
        """Limits of the coarser type; None for float types, whose weights are judged one by one."""
        kinds = [kind for kind in (self.tensor.type, self.original.type) if is_quantized(kind)]
        return max(map(limit_of, kinds), key=lambda limit: limit.tensor) if kinds else None


@dataclass(frozen=True)
class ComparedTile:
    """A tile's statistics. is_exact: whether all its weights are as TensorResult.is_exact says."""

    statistics: RowStatistics
    is_exact: bool


class Judgement:
    """What the tiles of one tensor add up to."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._limit = pair.limit
        self._matrices = np.zeros((pair.tensor.n_matrices, 4))  # error, original, product, decoded
        self._histogram = empty_histogram()
        self._n_non_finite = self._n_non_finite_original = self._n_beyond = 0
        self._worst = (0.0, 0)
        self._n_bad_rows = 0
        self._bad_rows: list[int] = []
        self._is_exact = True

    def add(self, tile: Tile, compared: ComparedTile) -> None:
        """Take the next tile."""
        seen, rows = compared.statistics, np.arange(tile.start, tile.stop)
        self._matrices[tile.matrix] += [
            each.sum() for each in (seen.error, seen.original, seen.product, seen.decoded)
        ]
        self._histogram += seen.histogram
        self._n_non_finite += int(seen.n_non_finite.sum())
        self._n_non_finite_original += int(seen.n_non_finite_original.sum())
        self._n_beyond += int(seen.n_beyond.sum())
        errors = _ratios(seen.error, seen.original)
        worst = int(errors.argmax())
        self._worst = max(self._worst, (float(errors[worst]), -int(rows[worst])))
        bad = rows[self._is_bad(seen)]
        self._n_bad_rows += len(bad)
        self._bad_rows += bad[: _NAMED - len(self._bad_rows)].tolist()
        self._is_exact &= compared.is_exact

    def _is_bad(self, seen: RowStatistics) -> npt.NDArray[np.bool_]:
        limit = self._limit
        if limit is None:
            return seen.n_beyond > 0
        is_filled = (seen.original == 0) & (seen.error > 0)  # every quantizer keeps a row of zeros
        excess = seen.error - limit.floor**2 * self._pair.tensor.n_cols
        bad: npt.NDArray[np.bool_] = (
            is_filled
            | (excess > limit.row**2 * seen.original)
            | (seen.worst_stretch > limit.stretch**2)
            | (seen.likeness < limit.likeness)
        )
        return bad

    def result(self) -> TensorResult:
        """Return the outcome after the last tile."""
        tensor = self._pair.tensor
        error, original, product, decoded = self._matrices.sum(axis=0)
        relative = float(_ratios(error, original))
        return TensorResult(
            name=tensor.name,
            type=tensor.type.name,
            shape=tuple(reversed(tensor.shape)),
            relative_error=relative,
            snr_db=None if relative == 0 else -20 * log10(relative) if isfinite(relative) else -inf,
            typical_error=typical_error(self._histogram),
            worst_row=-self._worst[1],
            worst_row_error=self._worst[0],
            gain=float(product / decoded) if decoded else None,
            n_non_finite=self._n_non_finite,
            is_exact=self._is_exact and not self._n_non_finite,
            problems=tuple(self._problems(relative)),
        )

    def _problems(self, relative: float) -> Iterator[str]:
        if self._n_non_finite:
            yield f"{self._n_non_finite:,} weights are NaN or infinite"
        if self._n_non_finite_original:
            yield f"{self._n_non_finite_original:,} weights of the checkpoint are NaN or infinite"
        if self._n_bad_rows:
            yield f"{self._row_problem()} (worst: row {-self._worst[1]}, off by {_percent(self._worst[0])})"
        limit = self._limit
        if limit is None:
            return
        floor = limit.floor * sqrt(self._pair.tensor.n_weights)
        error, original = np.sqrt(self._matrices[:, :2].sum(axis=0))
        if error - floor > limit.tensor * original:
            yield f"is off by {_percent(relative)}; {self._honest} is at most by {_percent(limit.tensor)}"
        if self._histogram.sum() < LEAST_STRETCHES:
            return
        typical = typical_error(self._histogram)
        if typical > limit.typical:
            yield f"is typically off by {_percent(typical)}; {self._honest} is at most by {_percent(limit.typical)}"
        yield from self._gain_problems(limit, floor)

    def _gain_problems(self, limit: Limit, floor: float) -> Iterator[str]:
        """Yield the matrices whose weights are all too large or too small."""
        _, _, product, decoded = self._matrices.T
        loud = np.sqrt(decoded) > 100 * floor
        gains = np.divide(product, decoded, out=np.ones_like(product), where=loud)
        wrong = np.flatnonzero((gains < limit.least_gain) | (gains > limit.most_gain))
        for matrix in wrong[:_NAMED]:
            where = f"expert {matrix} " if len(gains) > 1 else ""
            yield f"{where}has weights that are {1 / gains[matrix]:.3g} times the original's"

    def _row_problem(self) -> str:
        shown = ", ".join(map(self._row_name, self._bad_rows))
        more = (
            f" and {self._n_bad_rows - len(self._bad_rows):,} more" if self._n_bad_rows > len(self._bad_rows) else ""
        )
        rows = "row" if self._n_bad_rows == 1 else "rows"
        if self._limit is None:
            return f"{self._n_beyond:,} weights differ by more than rounding, in {rows} {shown}{more}"
        return f"{rows} {shown}{more} cannot be a quantization of the original"

    def _row_name(self, row: int) -> str:
        tensor = self._pair.tensor
        rows_per_matrix = tensor.n_rows // tensor.n_matrices
        return f"{row % rows_per_matrix} of expert {row // rows_per_matrix}" if tensor.n_matrices > 1 else str(row)

    @property
    def _honest(self) -> str:
        return f"an honest {self._pair.tensor.type.name}"


def _ratios(error: npt.NDArray[np.float64], original: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return roots of error over original; infinite where the original is zero and the error is not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, np.sqrt(np.divide(error, original)))


def _percent(error: float) -> str:
    return f"{100 * error:.3g} %" if error < 100 else f"{error:.3g} times"
