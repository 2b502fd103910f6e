"""Compiled arithmetic of llama.cpp's stored log-probabilities: 16-bit codes (perplexity.cpp, log_softmax)."""

import numpy as np
import numpy.typing as npt

from gemma4_quant.compiled import compiled
from gemma4_quant.measuring.kernels import Float64, Logits, Targets, argmax, log_sum_exp

Codes = npt.NDArray[np.uint16]

_RANGE = np.float32(16)  # nats below the largest logit; what is less likely is stored as that
_STEPS = np.float32(65535)
_NEGLIGIBLE = -16.0  # log-probabilities that llama-perplexity leaves out of sums


@compiled()
def encode_rows(start: int, stop: int, logits: Logits, scales: npt.NDArray[np.float32], codes: Codes) -> None:
    """Fill rows start to stop. scales: (n, 2) float32, step and smallest log-probability. codes: (n, n_vocab)."""
    for i in range(start, stop):
        row = logits[i]
        largest = row[argmax(row)]
        smallest = largest
        for j in range(row.size):
            smallest = min(smallest, row[j])
        smallest = max(smallest, largest - _RANGE)
        log_sum = np.float32(log_sum_exp(row) - np.float64(largest))
        step = (largest - smallest) / _STEPS
        scales[i, 0] = step
        scales[i, 1] = smallest - largest - log_sum
        inverse = np.float32(1) / step if step > 0 else np.float32(0)
        for j in range(row.size):
            codes[i, j] = np.uint16(np.rint(inverse * max(row[j] - smallest, np.float32(0))))


@compiled()
def compare_coded_rows(
    start: int,
    stop: int,
    scales: npt.NDArray[np.float32],
    codes: Codes,
    candidate: Logits,
    targets: Targets,
    reference_nll: Float64,
    candidate_nll: Float64,
    divergence: Float64,
    same_top: npt.NDArray[np.bool_],
) -> None:
    """Fill positions start to stop of the last four arrays, leaving out what llama-perplexity leaves out."""
    for i in range(start, stop):
        row = candidate[i]
        log_sum = log_sum_exp(row)
        step, smallest = np.float64(scales[i, 0]), np.float64(scales[i, 1])
        reference_nll[i] = -(step * codes[i, targets[i]] + smallest)
        candidate_nll[i] = log_sum - np.float64(row[targets[i]])
        total = 0.0
        best = 0
        for j in range(row.size):
            log_p = step * codes[i, j] + smallest
            if codes[i, j] > codes[i, best]:
                best = j
            if log_p > _NEGLIGIBLE:
                total += np.exp(log_p) * (log_p - np.float64(row[j]) + log_sum)
        divergence[i] = total
        same_top[i] = argmax(row) == best
