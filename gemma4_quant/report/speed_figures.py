"""Figures of speed: by depth where several were measured, else by test."""

from collections.abc import Sequence
from dataclasses import replace

from gemma4_quant.measuring.speed import Speed
from gemma4_quant.report.figures import Figure, figure
from gemma4_quant.report.numbers import count_text
from gemma4_quant.report.plots.data import Group, Interval, LinePoint, Series, interval
from gemma4_quant.report.plots.interval_plot import draw_intervals
from gemma4_quant.report.plots.line_plot import LineStyle, draw_lines
from gemma4_quant.report.sections import Named
from gemma4_quant.report.speeds import all_speeds, written_speed
from gemma4_quant.report.tables import Cell, Column, Row, Table

MAX_TESTS = 12


def speed_figures(models: Sequence[Named]) -> tuple[Figure, ...]:
    """Return a figure for each test that was run at several depths, and one for the rest."""
    speeds = all_speeds(model.model for model in models)
    depths: dict[str, set[int]] = {}
    for speed in speeds:
        depths.setdefault(_base(speed), set()).add(speed.counts.depth)
    by_depth = [test for test, found in depths.items() if len(found) > 1][:MAX_TESTS]
    flat = [test for test, found in depths.items() if len(found) == 1][:MAX_TESTS]
    found = [_depth_figure(models, test, number) for number, test in enumerate(by_depth)]
    if flat and len({*speeds}) > 1:
        found.append(_test_figure(models, flat))
    return tuple(found)


def _base(speed: Speed) -> str:
    return replace(speed.counts, depth=0).name


def _of(model: Named, test: str) -> list[Speed]:
    """Return a model's speeds of a test under the settings that come first."""
    found = [speed for speed in all_speeds([model.model]) if _base(speed) == test]
    return [speed for speed in found if speed.settings == found[0].settings]


def _interval(speed: Speed) -> Interval | None:
    mean, sd = speed.tokens_per_second, speed.deviation
    return interval(mean, max(0.0, mean - sd), mean + sd)


def _points(model: Named, test: str) -> tuple[LinePoint, ...]:
    found = ((speed.counts.depth, _interval(speed)) for speed in _by_depth(model, test))
    return tuple(LinePoint(depth, speed) for depth, speed in found if speed is not None)


def _depth_figure(models: Sequence[Named], test: str, number: int) -> Figure:
    series = [Series(model.name, _points(model, test)) for model in models]
    series = [each for each in series if each.points]
    depths = sorted({speed.counts.depth for model in models for speed in _of(model, test)})
    rows = tuple(
        Row((Cell(f"{depth:,}"), *(written_speed(_at(model, test, depth)) for model in models))) for depth in depths
    )
    title = f"Speed of {test} by depth"
    return figure(
        f"depth-{number}",
        title,
        f"Tokens per second of {test} after so many tokens of context, for {count_text(len(series), 'model')}; bars "
        "are one standard deviation of the repetitions.",
        Table(title, (Column("depth"), *(Column(model.name, "tokens/s") for model in models)), rows),
        lambda width: draw_lines(series, LineStyle("depth, tokens", "tokens per second", with_bands=False), width),
    )


def _by_depth(model: Named, test: str) -> list[Speed]:
    return sorted(_of(model, test), key=lambda speed: speed.counts.depth)


def _at(model: Named, test: str, depth: int) -> Speed | None:
    return next((speed for speed in _of(model, test) if speed.counts.depth == depth), None)


def _test_figure(models: Sequence[Named], tests: Sequence[str]) -> Figure:
    names = [model.name for model in models]
    groups, rows = [], []
    for test in tests:
        speeds = [next(iter(_of(model, test)), None) for model in models]
        title = next(speed.test for speed in speeds if speed is not None)
        groups.append(Group(title, tuple(None if speed is None else _interval(speed) for speed in speeds)))
        rows.append(Row((Cell(title), *map(written_speed, speeds))))
    return figure(
        "speed",
        "Speed",
        f"Tokens per second of {count_text(len(models), 'model')} in {count_text(len(groups), 'test')}; bars are one "
        "standard deviation of the repetitions.",
        Table("Speed", (Column("test"), *(Column(name, "tokens/s") for name in names)), tuple(rows)),
        lambda width: draw_intervals(groups, names, "tokens per second", width),
    )
