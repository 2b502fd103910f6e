"""Perplexity and divergence from logits, a number for each position: pure functions of arrays, on all cores."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gemma4_quant.errors import NonFiniteError, ShapeError
from gemma4_quant.measuring.kernels import Float64, Logits, Targets, comparison_rows, nll_rows


@dataclass(frozen=True)
class PositionScores:
    """What a model said of the tokens that follow scored positions; all arrays (n_positions,).

    nll: negative log-likelihood of the true token in nats, float64. The others are None without a reference:
    reference_nll, float64; divergence: KL(reference ‖ model) in nats, float64; same_top: whether both find the same
    token likeliest, bool.
    """

    nll: Float64
    reference_nll: Float64 | None = None
    divergence: Float64 | None = None
    same_top: npt.NDArray[np.bool_] | None = None


def negative_log_likelihoods(logits: Logits, targets: Targets, *, n_threads: int = 1) -> Float64:
    """Return −ln softmax(logits)[target] in nats for every position, (n_positions,) float64.

    Raises ShapeError when the arrays do not belong together or a target is no token, NonFiniteError when the
    logits of a position are not finite.
    """
    check_targets(logits.shape, targets)
    nll = np.empty(len(logits), np.float64)
    in_slices(lambda start, stop: nll_rows(start, stop, logits, targets, nll), len(logits), n_threads)
    refuse_non_finite(nll)
    return nll


def compare(reference: Logits, candidate: Logits, targets: Targets, *, n_threads: int = 1) -> PositionScores:
    """Compare a candidate's logits with a reference's at the same positions.

    Errors as of negative_log_likelihoods, and ShapeError when the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ShapeError(f"logits of shapes {reference.shape} and {candidate.shape} cannot be compared")
    check_targets(reference.shape, targets)
    reference_nll, candidate_nll, divergence = (np.empty(len(targets), np.float64) for _ in range(3))
    same_top = np.empty(len(targets), np.bool_)

    def work(start: int, stop: int) -> None:
        comparison_rows(
            start, stop, reference, candidate, targets, reference_nll, candidate_nll, divergence, same_top
        )

    in_slices(work, len(targets), n_threads)
    refuse_non_finite(reference_nll)
    refuse_non_finite(candidate_nll)
    refuse_non_finite(divergence)
    return PositionScores(candidate_nll, reference_nll, divergence, same_top)


def joined(parts: list[PositionScores]) -> PositionScores:
    """Return the scores of several pieces of text as one; all or none of them have a reference."""
    nll = np.concatenate([part.nll for part in parts]) if parts else np.empty(0, np.float64)
    if not parts or any(part.divergence is None for part in parts):
        return PositionScores(nll)
    return PositionScores(
        nll,
        reference_nll=np.concatenate([part.reference_nll for part in parts if part.reference_nll is not None]),
        divergence=np.concatenate([part.divergence for part in parts if part.divergence is not None]),
        same_top=np.concatenate([part.same_top for part in parts if part.same_top is not None]),
    )


def check_targets(shape: tuple[int, ...], targets: Targets) -> None:
    """Raise ShapeError unless `targets` are tokens for logits of shape (n_positions, n_vocab)."""
    if len(shape) != 2 or targets.shape != shape[:1] or 0 in shape:
        raise ShapeError(f"logits of shape {shape} and targets of shape {targets.shape} do not match")
    if targets.min() < 0 or targets.max() >= shape[1]:
        raise ShapeError(f"a target is outside the vocabulary of {shape[1]} tokens")


def refuse_non_finite(values: Float64) -> None:
    """Raise NonFiniteError when numbers computed from logits are not finite, for then the logits were not."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise NonFiniteError(
            f"the model's logits are NaN or infinite at {bad.size} of {values.size} positions, first at {bad[0]}"
        )


def in_slices(work: Callable[[int, int], None], n_rows: int, n_threads: int) -> None:
    """Run work(start, stop) over slices of the rows; the kernels release the GIL."""
    n_slices = max(1, min(n_threads, n_rows))
    bounds = [n_rows * i // n_slices for i in range(n_slices + 1)]
    if n_slices == 1:
        work(0, n_rows)
        return
    with ThreadPoolExecutor(n_slices) as pool:
        for done in [pool.submit(work, start, stop) for start, stop in pairwise(bounds)]:
            done.result()
