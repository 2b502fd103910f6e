"""Texts and positions whose logits are recorded from transformers (recording/record_logits.py)."""

from typing import Any

import numpy as np

N_TOKENS = 200
"""More than three windows of the random checkpoints, which are 64 wide."""

POSITIONS = (0, 1, 62, 63, 64, 65, 66, 127, 128, 150, 198, 199)
"""Around the edges of the window, and at both ends."""

ADAPTED = ("e", "moe")
"""Kinds whose logits are also recorded with an adapter (adapters.write_adapter_for)."""


def random_tokens() -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return (N_TOKENS,) ids of ordinary tokens of the example's vocabulary, the same on every machine."""
    raw = np.random.PCG64(np.random.SeedSequence([1, N_TOKENS])).random_raw(N_TOKENS)
    return (300 + raw % np.uint64(1700)).astype(np.int32)
