"""Two runs of bench against each other: which conditions differ, and which numbers differ by more than chance."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import hypot

from gemma4_quant.measuring.results import BenchResult, ModelResult
from gemma4_quant.measuring.speed import Speed
from gemma4_quant.report.conditions import device_text, flash_text, reference_text
from gemma4_quant.report.intervals import interval_of, normal_factor
from gemma4_quant.report.measures import DELTA_P_RMS, KL_99, KL_MEAN, LOG_RATIO, PERPLEXITY, SAME_TOP, Measure
from gemma4_quant.report.names import file_names
from gemma4_quant.report.plots.data import Interval, interval
from gemma4_quant.report.speeds import all_speeds

COMPARED = (PERPLEXITY, LOG_RATIO, KL_MEAN, KL_99, SAME_TOP, DELTA_P_RMS)


class Verdict(StrEnum):
    """What a difference says."""

    BETTER = "better"
    WORSE = "worse"
    EQUAL = "equal"
    SAME = "not told apart"
    UNKNOWN = "no interval"
    UNSTEADY = "unsteady"
    INCOMPARABLE = "other conditions"


@dataclass(frozen=True)
class Difference:
    """A condition that differs: its name and values, and which numbers it makes incomparable (`limits`)."""

    what: str
    earlier: str
    now: str
    limits: str = ""


@dataclass(frozen=True)
class Change:
    """A number of both runs, in `unit`. change: now minus earlier, with its confidence interval."""

    name: str
    unit: str
    significant: int
    earlier: float
    now: float
    change: Interval
    verdict: Verdict


@dataclass(frozen=True)
class ModelChanges:
    """What changed for one model. is_same_file: whether both runs measured the very same bytes."""

    name: str
    is_same_file: bool
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class RunComparison:
    """Differences between an earlier run and this one. gone, added: models that only one of them measured."""

    earlier_started: str
    confidence: float
    differences: tuple[Difference, ...]
    models: tuple[ModelChanges, ...]
    gone: tuple[str, ...]
    added: tuple[str, ...]


def compare_runs(earlier: BenchResult, now: BenchResult) -> RunComparison:
    """Compare two runs, model by model: those with the same bytes belong together, else those with the same name."""
    pairs = _pairs(earlier.models, now.models)
    differences = tuple(_differences(earlier, now))
    limited = frozenset(each.limits for each in differences)
    names = file_names([model.file.path for model in now.models])
    matched = {id(old) for old, _ in pairs} | {id(new) for _, new in pairs}
    return RunComparison(
        earlier_started=earlier.conditions.started,
        confidence=now.conditions.confidence,
        differences=differences,
        models=tuple(
            ModelChanges(
                names[now.models.index(new)],
                _hashes(old) == _hashes(new),
                tuple(_changes(earlier, now, old, new, limited)),
            )
            for old, new in pairs
        ),
        gone=tuple(old.file.path.name for old in earlier.models if id(old) not in matched),
        added=tuple(new.file.path.name for new in now.models if id(new) not in matched),
    )


def _hashes(model: ModelResult) -> tuple[str, ...]:
    return tuple(fact.sha256 for fact in model.file.files)


def _pairs(earlier: Sequence[ModelResult], now: Sequence[ModelResult]) -> list[tuple[ModelResult, ModelResult]]:
    keys: tuple[Callable[[ModelResult], object], ...] = (
        lambda model: (_hashes(model), model.file.path.name),
        lambda model: model.file.path.name,
        _hashes,
    )
    left = list(earlier)
    found: dict[int, ModelResult] = {}
    for key in keys:
        for number, new in enumerate(now):
            old = None if number in found else next((each for each in left if key(each) == key(new)), None)
            if old is not None:
                found[number] = old
                left = [each for each in left if each is not old]
    return [(found[number], new) for number, new in enumerate(now) if number in found]


QUALITY, DIVERGENCE = "quality", "divergence"


def _differences(earlier: BenchResult, now: BenchResult) -> Iterator[Difference]:
    for what, limits, of in _CONDITIONS:
        old, new = of(earlier), of(now)
        if old != new:
            yield Difference(what, old, new, limits)
    for name in sorted({*earlier.conditions.versions, *now.conditions.versions}):
        old, new = (run.conditions.versions.get(name, "none") for run in (earlier, now))
        if old != new:
            yield Difference(name, old, new)


def _texts(run: BenchResult) -> str:
    return ", ".join(f"{text.domain} ({text.sha256[:12]})" for text in run.texts) or "none"


def _reference(run: BenchResult) -> str:
    reference = run.reference
    if reference is None:
        return "none"
    model = reference.model
    return f"{reference_text(run)}" + ("" if model is None else f" ({'+'.join(f.sha256[:12] for f in model.files)})")


_CONDITIONS: tuple[tuple[str, str, Callable[[BenchResult], str]], ...] = (
    ("texts", QUALITY, _texts),
    ("framing", QUALITY, lambda run: run.conditions.framing or "none"),
    ("context", QUALITY, lambda run: f"{run.conditions.n_ctx:,} tokens"),
    ("stride", QUALITY, lambda run: "none" if run.conditions.stride is None else f"{run.conditions.stride:,} tokens"),
    ("reference", DIVERGENCE, _reference),
    ("KV cache", "", lambda run: f"{run.conditions.key_type} keys, {run.conditions.value_type} values"),
    ("flash attention", "", lambda run: flash_text(run.conditions.flash_attention)),
    ("device", "", lambda run: device_text(run.conditions)),
    ("threads", "", lambda run: str(run.conditions.n_threads)),
    ("confidence", "", lambda run: f"{100 * run.conditions.confidence:.4g} %"),
)


def _changes(
    earlier: BenchResult, now: BenchResult, old: ModelResult, new: ModelResult, limited: frozenset[str]
) -> Iterator[Change]:
    yield _exact("size", "MiB", old.file.n_bytes / (1 << 20), new.file.n_bytes / (1 << 20))
    if old.score is not None and new.score is not None:
        for measure in COMPARED:
            a = interval_of(measure.of(old.score.overall), earlier.conditions.confidence, measure.scale)
            b = interval_of(measure.of(new.score.overall), now.conditions.confidence, measure.scale)
            if a is not None and b is not None:
                yield from _judged(measure, a, b, limited)
    for speed in all_speeds([new]):
        before = next((each for each in all_speeds([old]) if _setting(each) == _setting(speed)), None)
        if before is not None:
            yield from _speed(before, speed, now.conditions.confidence)


def _setting(speed: Speed) -> object:
    return speed.test, speed.settings


def difference_of(earlier: Interval, now: Interval) -> Interval | None:
    """Return now minus earlier with its interval, from the intervals of both; None where that is not finite.

    Distances to the ends are added in quadrature, each side for itself (MOVER: Zou and Donner, Statistics in Medicine
    27, 2008), as for independent samples. Where both runs scored the same text their errors go together, and the
    interval is wider than it need be: a difference that is told apart is one.
    """
    change = now.value - earlier.value
    return interval(
        change,
        change - hypot(now.value - now.low, earlier.high - earlier.value),
        change + hypot(now.high - now.value, earlier.value - earlier.low),
    )


def _judged(measure: Measure, earlier: Interval, now: Interval, limited: frozenset[str]) -> Iterator[Change]:
    change = difference_of(earlier, now)
    if change is None:
        return
    needs_reference = measure is not PERPLEXITY
    if QUALITY in limited or (needs_reference and DIVERGENCE in limited):
        verdict = Verdict.INCOMPARABLE
    else:
        verdict = _verdict(change, lower_is_better=measure.better == "lower")
    yield Change(measure.title, measure.unit, measure.significant, earlier.value, now.value, change, verdict)


def _verdict(change: Interval, *, lower_is_better: bool) -> Verdict:
    if change.value == 0:
        return Verdict.EQUAL
    if change.low == change.high:
        return Verdict.UNKNOWN
    if change.low <= 0 <= change.high:
        return Verdict.SAME
    return Verdict.BETTER if (change.value < 0) == lower_is_better else Verdict.WORSE


def _speed(earlier: Speed, now: Speed, confidence: float) -> Iterator[Change]:
    # The spread of single repetitions, not the error of their mean: runs differ by more than repetitions within one.
    reach = normal_factor(confidence)
    a, b = (
        interval(
            each.tokens_per_second, *(each.tokens_per_second + side * reach * each.deviation for side in (-1, 1))
        )
        for each in (earlier, now)
    )
    change = None if a is None or b is None else difference_of(a, b)
    if a is not None and b is not None and change is not None:
        is_steady = not (earlier.has_drifted or now.has_drifted)
        verdict = _verdict(change, lower_is_better=False) if is_steady else Verdict.UNSTEADY
        yield Change(now.test, "tokens/s", 3, a.value, b.value, change, verdict)


def _exact(name: str, unit: str, earlier: float, now: float) -> Change:
    change = now - earlier
    verdict = Verdict.EQUAL if change == 0 else Verdict.BETTER if change < 0 else Verdict.WORSE
    return Change(name, unit, 4, earlier, now, Interval(change, change, change), verdict)
