"""What an importance file says about a model, tensor by tensor and layer by layer: llama-imatrix's statistics.

The columns are those of `llama-imatrix --show-statistics` (tools/imatrix/imatrix.cpp, compute_statistics and
compute_cossim), computed in float64.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.calibration.importance import Entry, Importance

_LAYER = re.compile(r"^blk\.(\d+)\.")
_ACTIVE = 1e-5  # a column of a smaller mean square takes no part; compute_statistics's threshold


@dataclass(frozen=True)
class TensorStatistics:
    """How the inputs of one weight are spread over its columns; columns of matrices that saw nothing are left out.

    layer: None outside the layers. total: sum of mean squares, Σ E[x²]. least, most, mean, deviation: of the columns'
    mean squares. active_share: columns above 1e-5. n_columns: of all matrices. entropy: of the mean squares as a
    distribution, in bits. entropy_share: of the most it could be. outlier_share: columns more than a deviation above
    the mean. cosine: between the sums of this weight and those of the same weight one layer before, None without one.
    """

    name: str
    layer: int | None
    total: float
    least: float
    most: float
    mean: float
    deviation: float
    active_share: float
    n_columns: int
    entropy: float
    entropy_share: float
    outlier_share: float
    cosine: float | None


@dataclass(frozen=True)
class LayerStatistics:
    """Averages over a layer's weights, each weighted with its columns; a missing cosine counts as 0, as there."""

    layer: int
    total: float
    outlier_share: float
    cosine: float


def tensor_statistics(importance: Importance) -> tuple[TensorStatistics, ...]:
    """Return statistics of all weights that saw something, by kind of weight, the greatest total first."""
    found = [
        _statistics(name, entry, _previous(importance.entries, name))
        for name, entry in importance.entries.items()
        if entry.counts.any()
    ]
    return tuple(sorted(found, key=lambda each: (kind_of(each.name), -each.total)))


def layer_statistics(tensors: Iterable[TensorStatistics]) -> tuple[LayerStatistics, ...]:
    """Return the averages of each layer, in order."""
    layers = defaultdict(list)
    for each in tensors:
        if each.layer is not None:
            layers[each.layer].append(each)
    return tuple(_averaged(layer, members) for layer, members in sorted(layers.items()))


def kind_of(name: str) -> str:
    """Return the part of a weight's name that its counterparts in other layers share, such as `attn_q`."""
    parts = name.split(".")
    return parts[parts.index("weight") - 1] if "weight" in parts[1:] else name


def _previous(entries: Mapping[str, Entry], name: str) -> Entry | None:
    match = _LAYER.match(name)
    return entries.get(f"blk.{int(match[1]) - 1}.{name[match.end() :]}") if match else None


def _statistics(name: str, entry: Entry, previous: Entry | None) -> TensorStatistics:
    seen = entry.counts > 0
    means = (entry.sums[seen].astype(np.float64) / entry.counts[seen, None].astype(np.float64)).reshape(-1)
    total, mean, deviation = float(means.sum()), float(means.mean()), float(means.std())
    shares = means[means > 0] / total if total > 0 else means[:0]
    entropy = float(-(shares * np.log2(shares)).sum())
    match = _LAYER.match(name)
    return TensorStatistics(
        name=name,
        layer=int(match[1]) if match else None,
        total=total,
        least=float(means.min()),
        most=float(means.max()),
        mean=mean,
        deviation=deviation,
        active_share=float((means > _ACTIVE).mean()),
        n_columns=means.size,
        entropy=entropy,
        entropy_share=entropy / float(np.log2(means.size)) if means.size > 1 else 0.0,
        outlier_share=float((means > mean + deviation).mean()) if deviation > 0 else 0.0,
        cosine=None if previous is None else _cosine(entry.sums, previous.sums),
    )


def _cosine(sums: npt.NDArray[np.floating], previous: npt.NDArray[np.floating]) -> float | None:
    """Return the cosine of two arrays, None where it has none: widths differ between kinds of layers."""
    if sums.size != previous.size:
        return None
    first, second = sums.reshape(-1).astype(np.float64), previous.reshape(-1).astype(np.float64)
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norms if norms > 0 else None


def _averaged(layer: int, tensors: list[TensorStatistics]) -> LayerStatistics:
    weights = [each.n_columns for each in tensors]
    return LayerStatistics(
        layer=layer,
        total=float(np.average([each.total for each in tensors], weights=weights)),
        outlier_share=float(np.average([each.outlier_share for each in tensors], weights=weights)),
        cosine=float(np.average([each.cosine or 0.0 for each in tensors], weights=weights)),
    )


@dataclass(frozen=True)
class Statistics:
    """Statistics of an importance file, tensor by tensor and layer by layer."""

    tensors: tuple[TensorStatistics, ...]
    layers: tuple[LayerStatistics, ...]


def statistics(importance: Importance) -> Statistics:
    """Return all statistics of an importance file."""
    tensors = tensor_statistics(importance)
    return Statistics(tensors, layer_statistics(tensors))
