"""From a number for each position to the estimates that a report shows, each with its uncertainty."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
import numpy.typing as npt

from gemma4_quant.measuring.bootstrap import (
    BootstrapOptions,
    Resamples,
    accelerated_interval,
    draw,
    percentile_interval,
    resampled_percentiles,
)
from gemma4_quant.measuring.kernels import Float64
from gemma4_quant.measuring.position_scores import PositionScores
from gemma4_quant.measuring.results import Distribution, Divergence, Estimate

PERCENTILES = {
    "percentile_0_1": 0.1,
    "percentile_1": 1.0,
    "percentile_5": 5.0,
    "percentile_10": 10.0,
    "percentile_25": 25.0,
    "median": 50.0,
    "percentile_75": 75.0,
    "percentile_90": 90.0,
    "percentile_95": 95.0,
    "percentile_99": 99.0,
    "percentile_99_9": 99.9,
}
"""Fields of a Distribution by their percent: those that llama-perplexity prints for divergence or for Δp."""

_PERCENTS = np.array(list(PERCENTILES.values()))

Sums = Float64
"""(n_resamples or 1, n_columns) float64: sums over positions, in the order of _COLUMNS."""

_COLUMNS = ("count", "nll", "reference_nll", "divergence", "delta_p", "delta_p_squared", "same_top")
_COUNT, _NLL, _REFERENCE, _DIVERGENCE, _DELTA, _DELTA_2, _SAME = range(len(_COLUMNS))


@dataclass(frozen=True)
class Sample:
    """Scored positions with what they belong to.

    scores: of all positions. units: (n_positions,) int64, the unit of the bootstrap each belongs to, from 0.
    strata: (n_units,) int64, the domain of each unit.
    """

    scores: PositionScores
    units: npt.NDArray[np.int64]
    strata: npt.NDArray[np.int64]


def mean_estimate(values: Float64) -> Estimate:
    """Return mean and standard error as llama-perplexity does: √((E[v²] − E[v]²) / (n − 1))."""
    mean = float(values.mean())
    variance = float(np.square(values - mean).mean())
    return Estimate(mean, sqrt(variance / (len(values) - 1)) if len(values) > 1 else 0.0)


def perplexity_estimate(nll: Float64) -> Estimate:
    """Return e^(mean nll), its error propagated as llama-perplexity does: perplexity · error of the mean."""
    mean = mean_estimate(nll)
    value = float(np.exp(mean.value))
    return Estimate(value, value * (mean.error or 0.0))


class Summary:
    """Estimates over one sample; the resamples are drawn once and shared by all of them."""

    def __init__(self, sample: Sample, options: BootstrapOptions, *, n_threads: int = 1) -> None:
        """Draw resamples; without intervals when there are too few units."""
        self._sample = sample
        self._n_threads = n_threads
        self._resamples: Resamples | None = draw(sample.strata, options)
        sums = _sums(sample)
        self._whole: Sums = sums.sum(axis=0, keepdims=True)
        if self._resamples is not None:
            self._drawn: Sums = self._resamples.drawn @ sums
            self._left_out: Sums = self._resamples.left_out @ sums

    def perplexity(self) -> Estimate:
        """Return the model's perplexity."""
        return self._smooth(
            perplexity_estimate(self._sample.scores.nll), lambda sums: np.exp(sums[:, _NLL] / sums[:, _COUNT])
        )

    def divergence(self) -> Divergence | None:
        """Return how the model diverges from its reference; None without one."""
        scores = self._sample.scores
        if scores.divergence is None or scores.reference_nll is None or scores.same_top is None:
            return None
        delta_p = np.exp(-scores.nll) - np.exp(-scores.reference_nll)
        perplexity, base = perplexity_estimate(scores.nll), perplexity_estimate(scores.reference_nll)
        # Positions are paired, so the error of a difference is that of its own spread.
        ratio = mean_estimate(scores.nll - scores.reference_nll)
        return Divergence(
            kl=self._distribution(scores.divergence, _DIVERGENCE),
            delta_p=self._distribution(delta_p, _DELTA),
            delta_p_rms=self._smooth(_rms(delta_p), lambda s: np.sqrt(s[:, _DELTA_2] / s[:, _COUNT])),
            same_top=self._smooth(_share(scores.same_top), lambda s: s[:, _SAME] / s[:, _COUNT]),
            reference_perplexity=self._smooth(base, lambda s: np.exp(s[:, _REFERENCE] / s[:, _COUNT])),
            log_perplexity_ratio=self._smooth(ratio, lambda s: (s[:, _NLL] - s[:, _REFERENCE]) / s[:, _COUNT]),
            perplexity_ratio=self._smooth(
                Estimate(exp(ratio.value), exp(ratio.value) * (ratio.error or 0.0)),
                lambda s: np.exp((s[:, _NLL] - s[:, _REFERENCE]) / s[:, _COUNT]),
            ),
            perplexity_difference=self._smooth(
                _difference(perplexity, base, scores.nll, scores.reference_nll),
                lambda s: np.exp(s[:, _NLL] / s[:, _COUNT]) - np.exp(s[:, _REFERENCE] / s[:, _COUNT]),
            ),
            nll_correlation=_correlation(scores.nll, scores.reference_nll),
        )

    def mean_divergence(self) -> Estimate | None:
        """Return the mean divergence alone; None without a reference."""
        divergence = self._sample.scores.divergence
        if divergence is None:
            return None
        return self._smooth(mean_estimate(divergence), lambda s: s[:, _DIVERGENCE] / s[:, _COUNT])

    def same_top(self) -> Estimate | None:
        """Return the share of positions with the same likeliest token alone; None without a reference."""
        same_top = self._sample.scores.same_top
        return None if same_top is None else self._smooth(_share(same_top), lambda s: s[:, _SAME] / s[:, _COUNT])

    def _smooth(self, estimate: Estimate, statistic: Callable[[Sums], Float64]) -> Estimate:
        """Add an interval to an estimate that is a smooth function of sums over positions."""
        if self._resamples is None:
            return estimate
        # Documents drawn may hold no position, and sums over many may overflow an exponential.
        with np.errstate(all="ignore"):
            replicates, left_out = statistic(self._drawn), statistic(self._left_out)
        if not (np.isfinite(replicates).all() and np.isfinite(left_out).all()):
            return estimate
        low, high = accelerated_interval(estimate.value, replicates, left_out, self._resamples.confidence)
        return Estimate(estimate.value, estimate.error, low, high)

    def _distribution(self, values: Float64, column: int) -> Distribution:
        percentiles = np.percentile(values, _PERCENTS).tolist()
        estimates = [Estimate(value) for value in percentiles]
        if self._resamples is not None and (self._drawn[:, _COUNT] > 0).all():
            replicates = resampled_percentiles(
                values, self._sample.units, self._resamples.drawn, _PERCENTS, self._n_threads
            )
            confidence = self._resamples.confidence
            estimates = [
                Estimate(value, float(column.std()), *percentile_interval(column, confidence))
                for value, column in zip(percentiles, replicates.T, strict=True)
            ]
        return Distribution(
            mean=self._smooth(mean_estimate(values), lambda s: s[:, column] / s[:, _COUNT]),
            minimum=Estimate(float(values.min())),
            maximum=Estimate(float(values.max())),
            **dict(zip(PERCENTILES, estimates, strict=True)),
        )


def _sums(sample: Sample) -> Sums:
    """Return (n_units, n_columns) float64: sums over the positions of each unit."""
    scores, n_units = sample.scores, len(sample.strata)
    sums = np.zeros((n_units, len(_COLUMNS)), np.float64)

    def add(column: int, values: npt.NDArray[np.float64] | None) -> None:
        sums[:, column] = np.bincount(sample.units, values, minlength=n_units)

    add(_COUNT, None)
    add(_NLL, scores.nll)
    if scores.divergence is not None and scores.reference_nll is not None and scores.same_top is not None:
        delta_p = np.exp(-scores.nll) - np.exp(-scores.reference_nll)
        add(_REFERENCE, scores.reference_nll)
        add(_DIVERGENCE, scores.divergence)
        add(_DELTA, delta_p)
        add(_DELTA_2, np.square(delta_p))
        add(_SAME, scores.same_top.astype(np.float64))
    return sums


def _share(flags: npt.NDArray[np.bool_]) -> Estimate:
    share, n = float(flags.mean()), len(flags)
    return Estimate(share, sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0)


def _rms(values: Float64) -> Estimate:
    squares = mean_estimate(np.square(values))
    rms = sqrt(squares.value)
    return Estimate(rms, 0.5 / rms * (squares.error or 0.0) if rms else 0.0)


def _correlation(first: Float64, second: Float64) -> float | None:
    spreads = float(first.std() * second.std())
    return float(((first - first.mean()) * (second - second.mean())).mean()) / spreads if spreads > 0 else None


def _difference(perplexity: Estimate, base: Estimate, nll: Float64, base_nll: Float64) -> Estimate:
    """Propagate errors as llama-perplexity does, with the covariance of both means."""
    n = len(nll)
    covariance = float(((nll - nll.mean()) * (base_nll - base_nll.mean())).mean()) / (n - 1) if n > 1 else 0.0
    errors = (perplexity.error or 0.0) ** 2 + (base.error or 0.0) ** 2
    squared = errors - 2 * perplexity.value * base.value * covariance
    return Estimate(perplexity.value - base.value, sqrt(max(squared, 0.0)))
