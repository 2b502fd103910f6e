"""Importance of the output matrix, which in Gemma 4 is the embedding as well.

As the output matrix its columns matter as the activations do that enter it; as a table of embeddings, all columns
matter alike. There is one importance for both uses: a mixture, in a proportion that was measured (see
docs/measurements.md).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from gemma4_quant.calibration.importance import Entry

OUTPUT_WEIGHTS = frozenset({"output.weight", "token_embd.weight"})
"""Names of the output matrix: untied, and tied to the embedding."""

_TIED = "token_embd.weight"

LOOKUP_SHARE = 0.5
"""Part of the mixture that counts all columns alike, for the lookups."""


def with_lookups(entries: Mapping[str, Entry], share: float = LOOKUP_SHARE) -> dict[str, Entry]:
    """Return statistics in which that of the tied output matrix is mixed with its mean over the columns.

    share: of the mean in the mixture. Mixing the sums keeps their total, and mixed parts add up to the mixed whole.
    """
    mixed = dict(entries)
    if _TIED in mixed and share > 0:
        sums = mixed[_TIED].sums.astype(np.float64)
        mean = sums.mean(axis=1, keepdims=True)
        mixed[_TIED] = replace(mixed[_TIED], sums=(1 - share) * sums + share * mean)
    return mixed
