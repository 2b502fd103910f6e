"""Drawing the next token from logits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.compiled import compiled
from gemma4_quant.errors import InputError, NonFiniteError

Row = npt.NDArray[np.float32]
"""(n_vocab,) float32: the logits of one position."""


@dataclass(frozen=True)
class SamplingOptions:
    """How to draw tokens.

    n_tokens: most tokens of one answer. seed: the same seed, prompts and thread count give the same tokens.
    temperature: divides the logits; 0 takes the likeliest token. top_k: only so many likeliest tokens; 0 for all.
    top_p: of those, only the likeliest that together reach this probability. The defaults are what Gemma's
    generation_config.json recommends.
    """

    n_tokens: int = 512
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 64
    top_p: float = 0.95

    def check(self) -> None:
        """Raise InputError for values that mean nothing."""
        if self.n_tokens < 1:
            raise InputError(f"{self.n_tokens} tokens are to be generated; use at least 1")
        if self.seed < 0:
            raise InputError(f"the seed is {self.seed}; use 0 or more")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"the temperature is {self.temperature}; use 0 or more")
        if self.top_k < 0:
            raise InputError(f"top-k is {self.top_k}; use 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p}; use a number above 0 and at most 1")


def sample(logits: Row, options: SamplingOptions, rng: np.random.Generator) -> int:
    """Draw a token from the logits of a position; raises NonFiniteError when the largest is not finite.

    Cuts in the order of transformers: temperature, top-k, top-p. Of equal logits the token with the lower id is the
    likelier one, so that a draw does not depend on how the logits were sorted.
    """
    if not np.isfinite(logits.max()):
        raise NonFiniteError("the model's logits are NaN or infinite; is the model damaged?")
    if options.temperature == 0:
        return int(logits.argmax())
    k = min(options.top_k or len(logits), len(logits))
    tokens = likeliest(logits, k)
    scaled = (logits[tokens].astype(np.float64) - float(logits[tokens[0]])) / options.temperature
    weights = np.exp(scaled)
    reached = np.cumsum(weights / weights.sum())
    n_kept = min(int(np.searchsorted(reached, options.top_p)) + 1, k)
    at = int(np.searchsorted(reached, rng.random() * reached[n_kept - 1], side="right"))
    return int(tokens[min(at, n_kept - 1)])


def likeliest(logits: Row, k: int) -> npt.NDArray[np.int64]:
    """Return the `k` tokens with the largest logits, in falling order, (k,) int64; none may be NaN."""
    if k == len(logits):
        return np.argsort(-logits, kind="stable")
    values, tokens = np.empty(k, np.float32), np.empty(k, np.int64)
    _keep_largest(np.ascontiguousarray(logits), values, tokens)
    return tokens[np.lexsort((tokens, -values))]


@compiled()
def _keep_largest(logits: Row, values: Row, tokens: npt.NDArray[np.int64]) -> None:
    """Fill `values` and `tokens` with the largest logits, as a heap with the smallest on top, in one pass."""
    k = len(values)
    for i in range(k):
        _sift_up(values, tokens, i, logits[i], i)
    for i in range(k, len(logits)):
        if logits[i] > values[0]:
            _sift_down(values, tokens, logits[i], i)


@compiled()
def _sift_up(values: Row, tokens: npt.NDArray[np.int64], at: int, value: float, token: int) -> None:
    while at > 0:
        parent = (at - 1) // 2
        if values[parent] < value or (values[parent] == value and tokens[parent] > token):
            break
        values[at], tokens[at] = values[parent], tokens[parent]
        at = parent
    values[at], tokens[at] = value, token


@compiled()
def _sift_down(values: Row, tokens: npt.NDArray[np.int64], value: float, token: int) -> None:
    """Replace the top of the heap; of equal values the one with the highest token comes out first."""
    k = len(values)
    at = 0
    while True:
        child = 2 * at + 1
        if child >= k:
            break
        if child + 1 < k and (
            values[child + 1] < values[child]
            or (values[child + 1] == values[child] and tokens[child + 1] > tokens[child])
        ):
            child += 1
        if value < values[child] or (value == values[child] and token > tokens[child]):
            break
        values[at], tokens[at] = values[child], tokens[child]
        at = child
    values[at], tokens[at] = value, token
