"""Perplexity and divergence from logits: pure functions of arrays, compiled, run on all cores.

Sums are float64 and exact in the sense that nothing is dropped or coded: llama-perplexity stores the reference's
log-probabilities in 16 bits and skips those below e⁻¹⁶, these functions do not.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import exp, sqrt

import numpy as np
import numpy.typing as npt

from gemma4_quant.compiled import compiled
from gemma4_quant.errors import NonFiniteError, ShapeError

Logits = npt.NDArray[np.float32]
"""(n_positions, n_vocab) float32, rows contiguous."""

Targets = npt.NDArray[np.int32]
"""(n_positions,) int32: the token that followed each position."""

Float64 = npt.NDArray[np.float64]

_LN_2 = 0.6931471805599453
_LOG2_E = 1.4426950408889634
_INTEGER_BITS = 6755399441055744.0  # 1.5 · 2⁵²: adding it leaves an integer in the low bits of a float64
_SMALLEST = -700.0  # e⁻⁷⁰⁰ is still a normal float64


@compiled()
def _exp(x: float) -> float:
    """Return eˣ for x ≤ 0 to about 2e-13 relative, without branches so that loops over it are vectorised.

    Argument reduction to |r| ≤ ln 2 / 2 and the Taylor polynomial of degree 10, whose remainder is r¹¹ / 11!.
    """
    x = max(x, _SMALLEST)
    n = np.rint(x * _LOG2_E)
    r = x - n * _LN_2
    p = 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    # The exponent field of 2ⁿ, made without the conversion to int64 that AVX2 lacks.
    exponent = np.int64((np.float64(n + _INTEGER_BITS).view(np.int64) << 52) + (np.int64(1023) << 52))
    return float(p * exponent.view(np.float64))


@compiled()
def _argmax(row: Logits) -> int:
    """Return the first index of the largest value, as llama-perplexity picks the top token."""
    best = row[0]
    at = 0
    for i in range(1, row.size):
        if row[i] > best:
            best = row[i]
            at = i
    return at


@compiled(reorder_sums=True)
def _sum_exp(row: Logits, top: float) -> float:
    total = 0.0
    for i in range(row.size):
        total += _exp(np.float64(row[i]) - top)
    return total


@compiled(reorder_sums=True)
def _divergence(reference: Logits, candidate: Logits, reference_log_sum: float, candidate_log_sum: float) -> float:
    """Return Σ p·(log p − log q) − p + q: the divergence as a sum of terms that are never negative.

    The last two sums cancel exactly; taken along, they also cancel the rounding of both log-sums to first order,
    which otherwise would swamp divergences below 1e-7.
    """
    total = 0.0
    for i in range(reference.size):
        log_p = np.float64(reference[i]) - reference_log_sum
        log_q = np.float64(candidate[i]) - candidate_log_sum
        p = _exp(log_p)
        total += p * (log_p - log_q) - p + _exp(log_q)
    return total


@compiled()
def _log_sum(row: Logits) -> float:
    top = np.float64(row[_argmax(row)])
    return float(top + np.log(_sum_exp(row, top)))


@compiled()
def _nll_rows(start: int, stop: int, logits: Logits, targets: Targets, nll: Float64) -> None:
    for i in range(start, stop):
        nll[i] = _log_sum(logits[i]) - np.float64(logits[i, targets[i]])


@compiled()
def _comparison_rows(
    start: int,
    stop: int,
    reference: Logits,
    candidate: Logits,
    reference_nll: Float64,
    candidate_nll: Float64,
    targets: Targets,
    divergence: Float64,
    same_top: npt.NDArray[np.bool_],
) -> None:
    for i in range(start, stop):
        reference_log_sum = reference_nll[i] + np.float64(reference[i, targets[i]])
        candidate_log_sum = candidate_nll[i] + np.float64(candidate[i, targets[i]])
        divergence[i] = _divergence(reference[i], candidate[i], reference_log_sum, candidate_log_sum)
        same_top[i] = _argmax(reference[i]) == _argmax(candidate[i])


def negative_log_likelihoods(logits: Logits, targets: Targets, *, n_threads: int = 1) -> Float64:
    """Return −log softmax(logits)[target] in nats for every position, (n_positions,) float64.

    Raises ShapeError when the arrays do not belong together or a target is no token, NonFiniteError when the
    logits of a position are not finite.
    """
    _check(logits, targets)
    nll = np.empty(len(logits), np.float64)
    _in_threads(lambda start, stop: _nll_rows(start, stop, logits, targets, nll), len(logits), n_threads)
    _refuse_non_finite(nll)
    return nll


@dataclass(frozen=True)
class Comparison:
    """How a candidate's predictions differ from a reference's, a number for each position.

    divergence: KL(reference ‖ candidate) in nats, float64. same_top: whether both put the same token first.
    delta_p: probability of the true token, candidate's minus reference's, float64.
    reference_nll, candidate_nll: negative log-likelihoods of the true token in nats, float64.
    """

    divergence: Float64
    same_top: npt.NDArray[np.bool_]
    delta_p: Float64
    reference_nll: Float64
    candidate_nll: Float64


def compare(
    reference: Logits, candidate: Logits, targets: Targets, reference_nll: Float64, *, n_threads: int = 1
) -> Comparison:
    """Compare two models' logits at the same positions.

    reference_nll: what negative_log_likelihoods gives for `reference`, so that several candidates share it.
    Errors as there, and ShapeError when the shapes differ.
    """
    if reference.shape != candidate.shape or reference_nll.shape != targets.shape:
        raise ShapeError(f"logits of shapes {reference.shape} and {candidate.shape} cannot be compared")
    candidate_nll = negative_log_likelihoods(candidate, targets, n_threads=n_threads)
    divergence = np.empty(len(targets), np.float64)
    same_top = np.empty(len(targets), np.bool_)
    _in_threads(
        lambda start, stop: _comparison_rows(
            start, stop, reference, candidate, reference_nll, candidate_nll, targets, divergence, same_top
        ),
        len(targets),
        n_threads,
    )
    _refuse_non_finite(divergence)
    return Comparison(
        divergence, same_top, np.exp(-candidate_nll) - np.exp(-reference_nll), reference_nll, candidate_nll
    )


def joined(parts: list[Comparison]) -> Comparison:
    """Return the comparisons of several pieces of text as one."""
    return Comparison(
        divergence=np.concatenate([part.divergence for part in parts]),
        same_top=np.concatenate([part.same_top for part in parts]),
        delta_p=np.concatenate([part.delta_p for part in parts]),
        reference_nll=np.concatenate([part.reference_nll for part in parts]),
        candidate_nll=np.concatenate([part.candidate_nll for part in parts]),
    )


def _check(logits: Logits, targets: Targets) -> None:
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or logits.size == 0:
        raise ShapeError(f"logits of shape {logits.shape} and targets of shape {targets.shape} do not match")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise ShapeError(f"a target is outside the vocabulary of {logits.shape[1]} tokens")


def _refuse_non_finite(values: Float64) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise NonFiniteError(
            f"the model's logits are NaN or infinite at {bad.size} of {values.size} positions, first at {bad[0]}"
        )


def _in_threads(work: Callable[[int, int], None], n_rows: int, n_threads: int) -> None:
    """Run work(start, stop) over slices of the rows; the kernels release the GIL."""
    n_slices = max(1, min(n_threads, n_rows))
    bounds = [n_rows * i // n_slices for i in range(n_slices + 1)]
    if n_slices == 1:
        work(0, n_rows)
        return
    with ThreadPoolExecutor(n_slices) as pool:
        for done in [pool.submit(work, start, stop) for start, stop in pairwise(bounds)]:
            done.result()


@dataclass(frozen=True)
class Estimate:
    """A mean over positions and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class DivergenceSummary:
    """KL divergence of a candidate from its reference over all scored positions, in nats, and its kin.

    log_perplexity_ratio: ln(perplexity of the candidate / of the reference). same_top: share of positions, 0 to 1.
    delta_p_rms: root mean square of the change of the true token's probability, 0 to 1.
    """

    mean: Estimate
    median: float
    percentile_99: float
    percentile_99_9: float
    maximum: float
    log_perplexity_ratio: Estimate
    same_top: Estimate
    delta_p_rms: Estimate


def mean_estimate(values: Float64) -> Estimate:
    """Return mean and standard error as llama-perplexity does: √((E[v²] − E[v]²) / (n − 1))."""
    mean = float(values.mean())
    variance = float(np.square(values - mean).mean())
    return Estimate(mean, sqrt(variance / (len(values) - 1)) if len(values) > 1 else 0.0)


def perplexity(nll: Float64) -> Estimate:
    """Return e^(mean nll), its error propagated as llama-perplexity does: perplexity · error of the mean."""
    log_perplexity = mean_estimate(nll)
    return Estimate(exp(log_perplexity.value), exp(log_perplexity.value) * log_perplexity.error)


def summarise(comparison: Comparison) -> DivergenceSummary:
    """Return the statistics that llama-perplexity --kl-divergence prints; percentiles interpolate linearly."""
    divergence = comparison.divergence
    median, p99, p99_9 = np.percentile(divergence, (50, 99, 99.9)).tolist()
    n = len(divergence)
    share = float(comparison.same_top.mean())
    squares = mean_estimate(np.square(comparison.delta_p))
    rms = sqrt(squares.value)
    return DivergenceSummary(
        mean=mean_estimate(divergence),
        median=median,
        percentile_99=p99,
        percentile_99_9=p99_9,
        maximum=float(divergence.max()),
        # Positions are paired, so the error of the difference is that of its own spread.
        log_perplexity_ratio=mean_estimate(comparison.candidate_nll - comparison.reference_nll),
        same_top=Estimate(share, sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0),
        delta_p_rms=Estimate(rms, 0.5 / rms * squares.error if rms else 0.0),
    )
