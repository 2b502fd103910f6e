"""What error feedback did to each tensor, and what to be careful about."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum


@dataclass(frozen=True)
class MatrixOutcome:
    """How a matrix's statistics were judged before its rows were encoded.

    n_vectors: inputs in the sums. needed: for three a column of a block. held_out_before, held_out_after: error of
    the outputs of some of its rows on held-out inputs, with the encoder that knows the importance only and with
    feedback; None without held-out inputs. fallback: why feedback was not used, None where it was.
    """

    matrix: int
    n_vectors: int
    needed: int
    held_out_before: float | None
    held_out_after: float | None
    fallback: str | None


@dataclass(frozen=True)
class TensorFeedback:
    """Error feedback of one tensor.

    error_before, error_after: layer-output error on the calibration text, tr(ΔW E[x xᵀ] ΔWᵀ), of the rows written in
    this run, with the encoder that knows the importance only (estimated from some of the rows), and as written.
    held_out_ratio: the same ratio on inputs that feedback has not seen; None without any. n_matrices: of the tensor
    (experts). n_fallbacks: of them that were encoded without feedback, for `reasons`. n_few: of them with fewer than
    three vectors a column.
    """

    name: str
    type: str
    n_matrices: int
    error_before: float
    error_after: float
    held_out_ratio: float | None
    n_fallbacks: int
    reasons: tuple[str, ...]
    n_few: int

    @property
    def ratio(self) -> float:
        """Error as written relative to that without feedback."""
        return self.error_after / self.error_before if self.error_before > 0 else 1.0


@dataclass(frozen=True)
class FeedbackReport:
    """Error feedback of a file: its tensors in file order."""

    tensors: tuple[TensorFeedback, ...]

    @property
    def mean_ratio(self) -> float:
        """Geometric mean of the tensors' ratios; 1 when there are none."""
        from math import exp, log

        ratios = [tensor.ratio for tensor in self.tensors if tensor.ratio > 0]
        return exp(fsum(map(log, ratios)) / len(ratios)) if ratios else 1.0

    @property
    def fell_back(self) -> tuple[TensorFeedback, ...]:
        """Tensors of which at least one matrix was encoded without feedback."""
        return tuple(tensor for tensor in self.tensors if tensor.n_fallbacks)

    @property
    def few(self) -> tuple[TensorFeedback, ...]:
        """Tensors of which at least one matrix has fewer than three vectors a column."""
        return tuple(tensor for tensor in self.tensors if tensor.n_few)


def tensor_feedback(
    name: str,
    kind: str,
    n_matrices: int,
    outcomes: Sequence[MatrixOutcome],
    before: Sequence[float],
    after: Sequence[float],
) -> TensorFeedback:
    """Sum up what was noted of a tensor, whatever the order in which threads noted it."""
    checked = [each for each in outcomes if each.held_out_before is not None and each.held_out_after is not None]
    held_before = fsum(each.held_out_before or 0.0 for each in checked)
    held_after = fsum((each.held_out_before if each.fallback else each.held_out_after) or 0.0 for each in checked)
    return TensorFeedback(
        name=name,
        type=kind,
        n_matrices=n_matrices,
        error_before=fsum(before),
        error_after=fsum(after),
        held_out_ratio=held_after / held_before if held_before > 0 else None,
        n_fallbacks=sum(each.fallback is not None for each in outcomes),
        reasons=tuple(sorted({each.fallback for each in outcomes if each.fallback is not None})),
        n_few=sum(each.n_vectors < each.needed for each in outcomes),
    )
