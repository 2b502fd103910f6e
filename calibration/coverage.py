"""How much of a model a calibration has seen: of each layer of experts, how many tokens reached each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gemma4_quant.calibration.importance import Floats

ENOUGH_TOKENS = 256
"""Tokens after which an expert's importance is good enough; measured, see docs/measurements.md."""

_LAYER = re.compile(r"^blk\.(\d+)\.")


@dataclass(frozen=True)
class ExpertCoverage:
    """How many tokens reached the experts of one layer.

    weight: the weight whose counts these are; those of a layer are alike. unseen: experts that no token reached.
    scarce: experts that fewer than the wanted number reached, the unseen ones among them. least, median, most: of the
    tokens that reached an expert.
    """

    layer: int
    weight: str
    n_experts: int
    unseen: tuple[int, ...]
    scarce: tuple[int, ...]
    least: int
    median: float
    most: int


def expert_coverage(counts: Mapping[str, Floats], enough: int = ENOUGH_TOKENS) -> tuple[ExpertCoverage, ...]:
    """Return the coverage of every layer of experts, in order; nothing for models without.

    counts: activations of each matrix by the weight's name, (n_matrices,) each. enough: tokens that each expert
    should have seen. Where weights of a layer differ, the one that saw least stands for it.
    """
    layers: dict[int, tuple[str, Floats]] = {}
    for name in sorted(counts):
        match = _LAYER.match(name)
        if match is None or len(counts[name]) == 1:
            continue
        layer = int(match[1])
        if layer not in layers or counts[name].min() < layers[layer][1].min():
            layers[layer] = name, counts[name]
    return tuple(_covered(layer, *layers[layer], enough) for layer in sorted(layers))


def is_covered(counts: Mapping[str, Floats], enough: int) -> bool:
    """Tell whether each expert has seen enough tokens; True for models without experts."""
    return not any(layer.scarce for layer in expert_coverage(counts, enough))


def _covered(layer: int, name: str, counts: Floats, enough: int) -> ExpertCoverage:
    return ExpertCoverage(
        layer=layer,
        weight=name,
        n_experts=len(counts),
        unseen=_indices(counts == 0),
        scarce=_indices(counts < enough),
        least=int(counts.min()),
        median=float(np.median(counts)),
        most=int(counts.max()),
    )


def _indices(mask: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]") -> tuple[int, ...]:
    return tuple(int(i) for i in np.flatnonzero(mask))
