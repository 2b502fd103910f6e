"""What a report says of a scored text: the measures, their names in data formats, and how they are shown."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gemma4_quant.measuring.results import Divergence, Estimate, TextScore
from gemma4_quant.report.numbers import interval_text, number_cell
from gemma4_quant.report.tables import Cell, Column


@dataclass(frozen=True)
class Measure:
    """One number with its uncertainty.

    key: its name in JSON lines, CSV and SQL, where it stands in plain units (nat, shares of 1). scale: factor to the
    unit shown. significant: digits shown at least. better: which change is one for the better.
    """

    key: str
    title: str
    unit: str
    scale: float
    significant: int
    better: Literal["lower", "higher"]
    of: Callable[[TextScore], Estimate | None]

    @property
    def column(self) -> Column:
        """Return the heading of its column."""
        return Column(self.title, self.unit)

    def cell(self, score: TextScore | None) -> Cell:
        """Write the value and its standard error, `-` when it was not measured."""
        estimate = None if score is None else self.of(score)
        if estimate is None:
            return number_cell(None)
        error = None if estimate.error is None else estimate.error * self.scale
        return number_cell(estimate.value * self.scale, error, significant=self.significant)

    def interval(self, score: TextScore | None) -> Cell:
        """Write the confidence interval, `-` when there is none."""
        estimate = None if score is None else self.of(score)
        if estimate is None or estimate.low is None or estimate.high is None:
            return Cell(interval_text(None, None))
        ends = estimate.low * self.scale, estimate.high * self.scale
        return Cell(interval_text(*ends, significant=self.significant))


def _divergence(of: Callable[[Divergence], Estimate]) -> Callable[[TextScore], Estimate | None]:
    return lambda score: None if score.divergence is None else of(score.divergence)


_KL = "1e-3 nat"

PERPLEXITY = Measure("perplexity", "perplexity", "", 1, 4, "lower", lambda score: score.perplexity)
KL_MEAN = Measure("kl_mean", "KL mean", _KL, 1e3, 3, "lower", _divergence(lambda d: d.kl.mean))
KL_MEDIAN = Measure("kl_median", "KL median", _KL, 1e3, 3, "lower", _divergence(lambda d: d.kl.median))
KL_95 = Measure("kl_95", "KL 95 %", _KL, 1e3, 3, "lower", _divergence(lambda d: d.kl.percentile_95))
KL_99 = Measure("kl_99", "KL 99 %", _KL, 1e3, 3, "lower", _divergence(lambda d: d.kl.percentile_99))
KL_99_9 = Measure("kl_99_9", "KL 99.9 %", _KL, 1e3, 3, "lower", _divergence(lambda d: d.kl.percentile_99_9))
KL_MAX = Measure("kl_max", "KL max", _KL, 1e3, 3, "lower", _divergence(lambda d: d.kl.maximum))
SAME_TOP = Measure("same_top", "same top", "%", 100, 4, "higher", _divergence(lambda d: d.same_top))
DELTA_P_RMS = Measure("delta_p_rms", "Δp RMS", "%", 100, 3, "lower", _divergence(lambda d: d.delta_p_rms))
LOG_RATIO = Measure(
    "log_perplexity_ratio", "ln PPL ratio", "1e-3", 1e3, 3, "lower", _divergence(lambda d: d.log_perplexity_ratio)
)

MEASURES = (
    PERPLEXITY,
    LOG_RATIO,
    KL_MEAN,
    KL_MEDIAN,
    KL_95,
    KL_99,
    KL_99_9,
    KL_MAX,
    SAME_TOP,
    DELTA_P_RMS,
)
"""All of them, in the order of data formats."""

DIVERGENCES = tuple(measure for measure in MEASURES if measure is not PERPLEXITY)
"""Those that need a reference."""
