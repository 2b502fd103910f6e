"""Confidence intervals: the bootstrap's where there is one, else the normal one of the standard error."""

from math import isfinite
from statistics import NormalDist

from gemma4_quant.measuring.results import Estimate
from gemma4_quant.report.plots.data import Interval, interval


def interval_of(estimate: Estimate | None, confidence: float, scale: float = 1) -> Interval | None:
    """Return the value with its interval at a confidence such as 0.95, both times `scale`.

    The interval has no length when nothing is known of the error. None for no estimate and for one that is not
    finite. A bootstrap over few documents may leave the value outside of its interval, which is then widened.
    """
    if estimate is None or not isfinite(estimate.value):
        return None
    low, high = estimate.low, estimate.high
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        error = estimate.error if estimate.error is not None and isfinite(estimate.error) else 0.0
        half = error * normal_factor(confidence)
        low, high = estimate.value - half, estimate.value + half
    return interval(estimate.value * scale, low * scale, high * scale)


def normal_factor(confidence: float) -> float:
    """Return how many standard errors a normal interval reaches to each side; confidence is kept inside (0, 1)."""
    return NormalDist().inv_cdf((1 + min(max(confidence, 0.5), 0.9999)) / 2)
