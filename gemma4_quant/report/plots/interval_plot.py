"""Values with their intervals in groups, a mark for each series: divergence by domain, speed by test."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from gemma4_quant.report.plots.data import Group, Interval, wants_log
from gemma4_quant.report.plots.frame import Canvas, canvas, legend, x_axis
from gemma4_quant.report.plots.labels import BOLD_PIXELS, fitted
from gemma4_quant.report.plots.marks import NARROW, Picture, Point, error_bar, label, line, marker
from gemma4_quant.report.plots.scales import Scale, linear_scale, log_scale

_ROW = 13.0  # pixels between the series of a group
_HEADING = 26.0  # room for a group's name above its first row
_TOP, _BELOW = 10.0, 46.0


def draw_intervals(groups: Sequence[Group], names: Sequence[str], x_title: str, width: float) -> Picture:
    """Draw groups one below the other, in each a row for each series, so that no mark hides another."""
    key = legend(names, width)
    height = key.height + _TOP + sum(_HEADING + _ROW * len(group.values) for group in groups) + _BELOW
    on = canvas(width, height, left=12, top=key.height + _TOP)
    x = _scale([value for group in groups for value in group.values if value is not None], on)
    drawn = [*key.marks, *x_axis(on, x, x_title)]
    top = on.area.top
    for group in groups:
        drawn += _group(group, names, x, on, top)
        top += _HEADING + _ROW * len(group.values)
    return Picture(width, height, drawn)


def _scale(values: Sequence[Interval], on: Canvas) -> Scale:
    ends = [end for value in values for end in value]
    if wants_log([value.value for value in values]):
        return log_scale(ends, on.across, max_ticks=8 if on.width > NARROW else 5)
    return linear_scale(ends, on.across, n_ticks=7 if on.width > NARROW else 4, from_zero=True)


def _group(group: Group, names: Sequence[str], x: Scale, on: Canvas, top: float) -> list[Element]:
    drawn = [
        line(Point(on.area.left, top), Point(on.area.right, top), "rule"),
        label(
            Point(on.area.left + 4, top + 17),
            fitted(group.name, on.area.right - on.area.left - 8, BOLD_PIXELS),
            class_="group",
        ),
    ]
    for number, value in enumerate(group.values):
        if value is None:
            continue
        y = top + _HEADING + _ROW * number
        drawn.append(error_bar(Point(x(value.low), y), Point(x(value.high), y), number))
        drawn.append(
            marker(Point(x(value.value), y), number, tip=f"{names[number]}, {group.name}: {value.value:.4g}")
        )
    return drawn
