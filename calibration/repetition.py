"""Noticing that a model is caught in a loop, saying the same again and again."""

import numpy as np

from gemma4_quant.runner.weights import Tokens

LONGEST_PERIOD = 64
"""Longest piece, in tokens, that is looked for again and again."""

LEAST_REPEATED = 96
"""A text is caught in a loop when so many of its last tokens repeat what stands one period before them."""


def without_loop(tokens: Tokens) -> Tokens:
    """Return a text without the repetitions it ends in, but for the first time that the repeated piece stands."""
    for period in range(1, min(LONGEST_PERIOD, len(tokens) - LEAST_REPEATED) + 1):
        differs = np.flatnonzero(tokens[period:] != tokens[:-period])
        n_repeated = len(tokens) - period - (int(differs[-1]) + 1 if len(differs) else 0)
        if n_repeated >= LEAST_REPEATED:
            return tokens[: len(tokens) - n_repeated]
    return tokens
