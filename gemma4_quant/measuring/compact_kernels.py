"""Compiled arithmetic of compactly stored predictions: choosing what is stored, and divergence from it.

Stored of each position are the likeliest tokens, the mass of all others (the tail), and a sample of the tail drawn in
proportion to probability. With P and Q the tail's masses under reference and model,

    KL = Σ_top f(p, q) + f(P, Q) + P · E[g(ln(p/q) − ln(P/Q))],   f(p, q) = p·ln(p/q) − p + q,   g(d) = d − 1 + e⁻ᵈ,

where the mean over the tail, which is the divergence inside of it, is estimated without bias by that over the sample.
"""

import numpy as np
import numpy.typing as npt

from gemma4_quant.compiled import compiled
from gemma4_quant.measuring.kernels import Float64, Logits, Targets, argmax, exp, log_sum_exp

Ids = npt.NDArray[np.uint32]
LogProbabilities = npt.NDArray[np.float32]

_BINS = 4096
_BINS_PER_NAT = 64.0
_GOLDEN = 0.6180339887498949  # multiples of it are spread evenly over 0 to 1


@compiled()
def _nth_largest(row: Logits, top: float, n: int) -> tuple[float, int]:
    """Return the n-th largest value, and how many equal to it are among the n largest."""
    counts = np.zeros(_BINS, np.int64)
    for i in range(row.size):
        counts[int(min((top - row[i]) * _BINS_PER_NAT, _BINS - 1.0))] += 1
    before, at = 0, 0
    while before + counts[at] < n:
        before += counts[at]
        at += 1
    members = np.empty(counts[at], np.float32)
    k = 0
    for i in range(row.size):
        if int(min((top - row[i]) * _BINS_PER_NAT, _BINS - 1.0)) == at:
            members[k] = row[i]
            k += 1
    members = np.sort(members)[::-1]
    value = members[n - before - 1]
    n_equal = 0
    for i in range(n - before):
        if members[i] == value:
            n_equal += 1
    return float(value), n_equal


@compiled()
def _store_row(
    row: Logits,
    offset: float,
    weights: Float64,
    top_ids: Ids,
    top_log_p: LogProbabilities,
    sample_ids: Ids,
    sample_log_p: LogProbabilities,
) -> float:
    """Fill one record and return the tail's mass.

    offset: 0 to 1, where sampling begins. weights: scratch, (n_vocab,).
    """
    log_sum = log_sum_exp(row)
    cut, n_equal = _nth_largest(row, float(row[argmax(row)]), top_ids.size)
    tail = 0.0
    k = 0
    for i in range(row.size):
        log_p = np.float64(row[i]) - log_sum
        is_top = row[i] > cut or (row[i] == cut and n_equal > 0)
        if is_top:
            top_ids[k] = i
            top_log_p[k] = log_p
            k += 1
            if row[i] == cut:
                n_equal -= 1
            weights[i] = 0.0
        else:
            weights[i] = exp(log_p)
            tail += weights[i]
    _sample(weights, tail, offset, sample_ids)
    for j in range(sample_ids.size):
        sample_log_p[j] = np.float64(row[sample_ids[j]]) - log_sum
    return tail


@compiled()
def _sample(weights: Float64, total: float, offset: float, chosen: Ids) -> None:
    """Draw indices in proportion to weights, at even steps along their sum."""
    step = total / max(1, chosen.size)
    passed = 0.0
    k = 0
    last = 0
    for i in range(weights.size):
        if weights[i] <= 0.0:
            continue
        last = i
        passed += weights[i]
        while k < chosen.size and passed > (k + offset) * step:
            chosen[k] = i
            k += 1
    while k < chosen.size:  # what rounding left over, or a tail without mass
        chosen[k] = last
        k += 1


@compiled()
def store_rows(
    start: int,
    stop: int,
    logits: Logits,
    targets: Targets,
    first: int,
    best: Ids,
    nll: Float64,
    tail: Float64,
    top_ids: Ids,
    top_log_p: LogProbabilities,
    sample_ids: Ids,
    sample_log_p: LogProbabilities,
) -> None:
    """Fill records start to stop. first: number of the first row among all positions, which seeds the sample."""
    weights = np.empty(logits.shape[1], np.float64)
    for i in range(start, stop):
        nll[i] = log_sum_exp(logits[i]) - np.float64(logits[i, targets[i]])
        if not np.isfinite(nll[i]):
            tail[i] = np.nan
            continue
        best[i] = argmax(logits[i])
        offset = ((first + i + 1) * _GOLDEN) % 1.0
        tail[i] = _store_row(logits[i], offset, weights, top_ids[i], top_log_p[i], sample_ids[i], sample_log_p[i])


@compiled()
def _term(log_p: float, log_q: float) -> float:
    """Return p·ln(p/q) − p + q, which is never negative."""
    p = np.exp(log_p)
    return float(p * (log_p - log_q) - p + np.exp(log_q))


@compiled()
def compare_rows(
    start: int,
    stop: int,
    candidate: Logits,
    targets: Targets,
    best: Ids,
    tail: Float64,
    top_ids: Ids,
    top_log_p: LogProbabilities,
    sample_ids: Ids,
    sample_log_p: LogProbabilities,
    candidate_nll: Float64,
    divergence: Float64,
    same_top: npt.NDArray[np.bool_],
    variance: Float64,
) -> None:
    """Fill positions start to stop of the last four arrays; variance: of the divergence, because of the sample."""
    for i in range(start, stop):
        log_sum = log_sum_exp(candidate[i])
        candidate_nll[i] = log_sum - np.float64(candidate[i, targets[i]])
        same_top[i] = argmax(candidate[i]) == best[i]
        total = 0.0
        mass = 0.0
        for k in range(top_ids.shape[1]):
            log_q = np.float64(candidate[i, top_ids[i, k]]) - log_sum
            total += _term(np.float64(top_log_p[i, k]), log_q)
            mass += np.exp(log_q)
        variance[i] = 0.0
        n = sample_ids.shape[1]
        if n > 0 and tail[i] > 0.0:
            log_ratio = np.log(tail[i]) - np.log(max(1.0 - mass, 1e-300))
            total += tail[i] * log_ratio - tail[i] + max(1.0 - mass, 0.0)
            mean = 0.0
            square = 0.0
            for k in range(n):
                log_q = np.float64(candidate[i, sample_ids[i, k]]) - log_sum
                d = np.float64(sample_log_p[i, k]) - log_q - log_ratio
                g = d - 1.0 + np.exp(-d)
                mean += g / n
                square += g * g / n
            total += tail[i] * mean
            variance[i] = tail[i] * tail[i] * max(square - mean * mean, 0.0) / n
        divergence[i] = total
