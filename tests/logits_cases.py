"""Texts and positions whose logits are recorded from transformers (recording/record_logits.py)."""

from dataclasses import dataclass
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


DRAFTED = {"assistant": "e", "unified_assistant": "unified"}
"""Kinds of drafters, and the kind of target that each is recorded with."""


@dataclass(frozen=True)
class DraftCase:
    """What a drafter starts from: a text that the target has read, the next token, and a hidden state, (256,)."""

    tokens: np.ndarray[Any, np.dtype[np.int32]]
    next_token: int
    state: np.ndarray[Any, np.dtype[np.float32]]


def draft_case() -> DraftCase:
    """Return the case whose logits are recorded; its text is shorter than a window, so both sides see all of it."""
    raw = np.random.PCG64(np.random.SeedSequence([2, 256])).random_raw(256)
    state = (raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0
    return DraftCase(random_tokens()[:40], int(random_tokens()[40]), (2 * state).astype(np.float32))
