"""Which file to take for which memory: the closest to the reference that fits."""

from collections.abc import Sequence
from dataclasses import dataclass

from gemma4_quant.report.sections import Named

FREE_SHARE = 0.2
"""Of the memory is left to the system and to a longer context than the one measured."""

_GIB = 1 << 30
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
"""Memory that machines and graphics cards are sold with, in GiB."""


@dataclass(frozen=True)
class Choice:
    """From so much memory on, this is the file to take. needed_bytes: what it took while it was measured."""

    memory_gib: int
    model: Named
    needed_bytes: int


def needed_bytes(model: Named) -> int:
    """Return the memory that a model needs: the most while it was measured, or at least its file's size."""
    return max(model.model.file.n_bytes, model.model.peak_bytes or 0)


def choices(models: Sequence[Named]) -> tuple[Choice, ...]:
    """Return a choice for each step of memory at which a closer file fits; the reference itself is none."""
    compared = [model for model in models if model.divergence is not None and not model.model.is_reference]
    found: list[Choice] = []
    for gib in _LADDER:
        fitting = [model for model in compared if needed_bytes(model) <= gib * _GIB * (1 - FREE_SHARE)]
        if not fitting:
            continue
        best = min(fitting, key=lambda model: (model.divergence or 0.0, model.model.file.n_bytes))
        if not found or found[-1].model is not best:
            found.append(Choice(gib, best, needed_bytes(best)))
    return tuple(found)
