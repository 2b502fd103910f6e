"""Compiled arithmetic on rows of logits; each row is read once, after a look for its largest value.

Sums are float64 and nothing is dropped or coded: llama-perplexity stores the reference's log-probabilities in 16 bits
and skips those below e⁻¹⁶, these functions do not.
"""

import numpy as np
import numpy.typing as npt

from gemma4_quant.compiled import compiled

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
def exp(x: float) -> float:
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


@compiled(finite=True)
def _largest(row: Logits) -> float:
    top = row[0]
    for i in range(1, row.size):
        top = max(top, row[i])
    return float(top)


@compiled()
def _first_index(row: Logits, value: float) -> int:
    for i in range(row.size):
        if row[i] == value:
            return i
    return -1


@compiled()
def argmax(row: Logits) -> int:
    """Return the first index of the largest value, as llama-perplexity picks the top token; -1 for a row with NaN."""
    return _first_index(row, _largest(row))


@compiled(reorder_sums=True)
def _sum_exp(row: Logits, top: float) -> float:
    total = 0.0
    poison = np.float32(0)
    for i in range(row.size):
        total += exp(np.float64(row[i]) - top)
        # max() in exp may lose a NaN; this sum does not, and makes one of infinities.
        poison += row[i] * np.float32(0)
    return total + np.float64(poison)


@compiled()
def log_sum_exp(row: Logits) -> float:
    """Return ln Σ eˣ over a row; NaN when an element is NaN or infinite."""
    top = _largest(row)
    return float(top + np.log(_sum_exp(row, top)))


@compiled(reorder_sums=True)
def _paired_sums(
    reference: Logits, candidate: Logits, reference_top: float, candidate_top: float
) -> tuple[float, float, float]:
    """Return Σ e^r, Σ e^c and Σ e^r·(r − c) − e^r + e^c, with r and c counted from their largest."""
    reference_sum = 0.0
    candidate_sum = 0.0
    excess = 0.0
    poison = np.float32(0)
    for i in range(reference.size):
        r = np.float64(reference[i]) - reference_top
        c = np.float64(candidate[i]) - candidate_top
        p = exp(r)
        q = exp(c)
        reference_sum += p
        candidate_sum += q
        excess += p * (r - c) - p + q
        poison += (reference[i] + candidate[i]) * np.float32(0)
    return reference_sum, candidate_sum, excess + np.float64(poison)


@compiled()
def divergence_from_sums(reference_sum: float, candidate_sum: float, excess: float) -> float:
    """Return KL(p ‖ q) from what _paired_sums returns.

    With P, Q the two sums and x = Q / P − 1, KL = excess / P − (x − ln(1 + x)): two terms of second order, so that
    the rounding of log-sums, which would swamp divergences below 1e-7, cancels to first order.
    """
    x = candidate_sum / reference_sum - 1.0
    return float(excess / reference_sum - (x - np.log1p(x)))


@compiled()
def nll_rows(start: int, stop: int, logits: Logits, targets: Targets, nll: Float64) -> None:
    """Fill nll[start:stop] with −ln softmax(logits)[target]."""
    for i in range(start, stop):
        nll[i] = log_sum_exp(logits[i]) - np.float64(logits[i, targets[i]])


@compiled()
def comparison_rows(
    start: int,
    stop: int,
    reference: Logits,
    candidate: Logits,
    targets: Targets,
    reference_nll: Float64,
    candidate_nll: Float64,
    divergence: Float64,
    same_top: npt.NDArray[np.bool_],
) -> None:
    """Fill positions start to stop of the last four arrays."""
    for i in range(start, stop):
        reference_top, candidate_top = _largest(reference[i]), _largest(candidate[i])
        sums = _paired_sums(reference[i], candidate[i], reference_top, candidate_top)
        divergence[i] = divergence_from_sums(sums[0], sums[1], sums[2])
        reference_nll[i] = reference_top + np.log(sums[0]) - np.float64(reference[i, targets[i]])
        candidate_nll[i] = candidate_top + np.log(sums[1]) - np.float64(candidate[i, targets[i]])
        same_top[i] = _first_index(reference[i], reference_top) == _first_index(candidate[i], candidate_top)
