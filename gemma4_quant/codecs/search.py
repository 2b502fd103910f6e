"""How widely an encoder searches: one record for all of them, which compiled code takes as it is."""

from collections.abc import Mapping
from typing import NamedTuple

from gemma4_quant.codecs.base import Effort


class Search(NamedTuple):
    """Bounds of a search; an encoder reads the parts it has.

    n_candidates: real scales tried for a block, which put its extremum (or spread) from `first` to `last` codes
    beyond the last code. n_refits: how often the best is fitted to its codes by least squares and rounded again.
    reach: representable scales (and offsets) tried by exact error on each side of the nearest.
    n_supers: super-scales compared in a super-block. n_rounds: how often super-scales and sub-scales are settled in
    turn.
    """

    n_candidates: int
    first: float
    last: float
    n_refits: int
    reach: int
    n_supers: int = 1
    n_rounds: int = 1


Searches = Mapping[Effort, Search]


def search_for(searches: Searches, effort: Effort) -> Search:
    """Return the bounds of an effort; PLAIN, which means no search, is FAST where a type has no plain rounding."""
    return searches[Effort.FAST if effort is Effort.PLAIN else effort]
