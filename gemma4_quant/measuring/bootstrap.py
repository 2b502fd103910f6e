"""Confidence intervals by bootstrap: documents are drawn anew, and everything is computed again from those drawn.

Positions of one document depend on each other, so documents are what is drawn, or chunks of a text that is one
document. Domains are drawn from each by itself, for a bench has chosen them and not drawn them.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from gemma4_quant.compiled import compiled
from gemma4_quant.measuring.kernels import Float64
from gemma4_quant.measuring.position_scores import in_slices

MIN_UNITS = 5
"""Fewest documents that say anything about how documents differ."""

_MAX_JACKKNIFE = 500

Counts = npt.NDArray[np.int32]


@dataclass(frozen=True)
class BootstrapOptions:
    """How to estimate intervals. resamples: times that documents are drawn; 0 for no intervals."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Resamples:
    """How often each unit was drawn.

    drawn: (n_resamples, n_units) int32. left_out: (n_groups, n_units) int32, all units but one (or one group of
    several thousand), from which acceleration is estimated. confidence: of the intervals.
    """

    drawn: Counts
    left_out: Counts
    confidence: float


def draw(strata: npt.NDArray[np.int64], options: BootstrapOptions) -> Resamples | None:
    """Draw units with replacement, from each stratum as many as it has.

    strata: (n_units,) number of the stratum of each unit. Returns None when intervals are not wanted, or there are
    fewer than MIN_UNITS units.
    """
    n_units = len(strata)
    if options.resamples < 1 or n_units < MIN_UNITS:
        return None
    generator = np.random.default_rng(options.seed)
    drawn = np.zeros((options.resamples, n_units), np.int32)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        shares = np.full(len(members), 1 / len(members))
        drawn[:, members] = generator.multinomial(len(members), shares, options.resamples)
    n_groups = min(n_units, _MAX_JACKKNIFE)
    groups = generator.permutation(n_units) % n_groups
    left_out = (groups[None, :] != np.arange(n_groups)[:, None]).astype(np.int32)
    return Resamples(drawn, left_out, options.confidence)


def accelerated_interval(
    value: float, replicates: Float64, left_out: Float64, confidence: float
) -> tuple[float, float]:
    """Return the bias-corrected and accelerated interval (Efron 1987).

    value: the statistic. replicates: (n_resamples,) of it. left_out: (n_groups,) of it without each group, from whose
    skewness the acceleration follows.
    """
    below = (np.count_nonzero(replicates < value) + 0.5 * np.count_nonzero(replicates == value)) / len(replicates)
    normal = NormalDist()
    bias = normal.inv_cdf(min(max(below, 0.5 / len(replicates)), 1 - 0.5 / len(replicates)))
    spread = left_out.mean() - left_out
    squares = float(np.square(spread).sum())
    acceleration = float((spread**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
    bounds = []
    for share in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(share)
        corrected = normal.cdf(bias + z / max(1 - acceleration * z, 1e-3))
        bounds.append(float(np.quantile(replicates, min(max(corrected, 0.0), 1.0))))
    return bounds[0], bounds[1]


def percentile_interval(replicates: Float64, confidence: float) -> tuple[float, float]:
    """Return the interval between two quantiles of the replicates, better for percentiles."""
    low, high = np.quantile(replicates, ((1 - confidence) / 2, (1 + confidence) / 2)).tolist()
    return low, high


def resampled_percentiles(
    values: Float64, units: npt.NDArray[np.int64], drawn: Counts, percents: Float64, n_threads: int = 1
) -> Float64:
    """Return percentiles of the values of the units drawn, interpolated linearly as by numpy.

    values: (n,). units: (n,) unit of each. Returns (n_resamples, n_percents) float64.
    """
    order = np.argsort(values, kind="stable")
    found = np.empty((len(drawn), len(percents)), np.float64)
    ordered, owners = values[order], units[order]
    sizes = np.bincount(units, minlength=drawn.shape[1])
    totals = drawn.astype(np.int64) @ sizes
    in_slices(
        lambda start, stop: _percentile_rows(start, stop, ordered, owners, drawn, totals, percents, found),
        len(drawn),
        n_threads,
    )
    return found


@compiled()
def _percentile_rows(
    start: int,
    stop: int,
    ordered: Float64,
    owners: npt.NDArray[np.int64],
    drawn: Counts,
    totals: npt.NDArray[np.int64],
    percents: Float64,
    found: Float64,
) -> None:
    """Walk the sorted values, each counting as often as its unit was drawn; `percents` rise."""
    for row in range(start, stop):
        passed = 0  # values of the resample up to and with number i
        i = -1
        for k in range(percents.size):
            rank = percents[k] / 100.0 * (totals[row] - 1)
            whole = int(rank)
            while passed <= whole:
                i += 1
                passed += drawn[row, owners[i]]
            low = ordered[i]
            high = low
            if rank > whole and passed <= whole + 1:
                j = i + 1
                while drawn[row, owners[j]] == 0:
                    j += 1
                high = ordered[j]
            found[row, k] = low + (high - low) * (rank - whole)
