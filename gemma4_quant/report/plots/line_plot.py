"""Lines over a common axis, with bands of uncertainty: divergence by position, speed by depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from gemma4_quant.report.plots.data import Series, wants_log
from gemma4_quant.report.plots.frame import canvas, legend, x_axis, y_axis
from gemma4_quant.report.plots.marks import NARROW, Picture, Point, band, error_bar, marker, polyline
from gemma4_quant.report.plots.scales import Scale, linear_scale, log_scale

_MAX_MARKS = 10


@dataclass(frozen=True)
class LineStyle:
    """Titles of the axes, and whether the uncertainty is a band (dense points) or a bar at each point."""

    x_title: str
    y_title: str
    with_bands: bool


def draw_lines(series: Sequence[Series], style: LineStyle, width: float) -> Picture:
    """Draw up to eight lines under a legend; the vertical axis is logarithmic where the values spread far."""
    names = legend([each.name for each in series], width, sample="line")
    on = canvas(width, (360 if width > NARROW else 320) + names.height, top=names.height + 30)
    points = [point for each in series for point in each.points]
    values = [point.y.value for point in points]
    x = linear_scale([point.x for point in points], on.across, n_ticks=7 if width > NARROW else 4)
    y: Scale = (
        log_scale([end for point in points for end in point.y], on.upward)
        if wants_log(values)
        else linear_scale([end for point in points for end in point.y], on.upward, from_zero=True)
    )
    drawn = [*names.marks, *x_axis(on, x, style.x_title), *y_axis(on, y, style.y_title)]
    for number, each in enumerate(series):
        drawn += _uncertainty(each, number, x, y, with_band=style.with_bands)
    for number, each in enumerate(series):
        drawn += _line(each, number, x, y)
    return Picture(on.width, on.height, drawn)


def _uncertainty(series: Series, number: int, x: Scale, y: Scale, *, with_band: bool) -> list[Element]:
    upper = [Point(x(point.x), y(point.y.high)) for point in series.points]
    lower = [Point(x(point.x), y(point.y.low)) for point in series.points]
    if with_band:
        return [band(upper, lower, number)] if len(series.points) > 1 else []
    return [error_bar(top, bottom, number) for top, bottom in zip(upper, lower, strict=True)]


def _line(series: Series, number: int, x: Scale, y: Scale) -> list[Element]:
    places = [Point(x(point.x), y(point.y.value)) for point in series.points]
    drawn = [polyline(places, number)] if len(places) > 1 else []
    # Lines are told apart by their marks too; on dense ones a few are enough, not all at the same places.
    step = -(-len(places) // _MAX_MARKS)
    first = number % step if step > 1 else 0
    drawn += [marker(places[i], number, tip=_tip(series, i)) for i in range(first, len(places), step)]
    return drawn


def _tip(series: Series, i: int) -> str:
    point = series.points[i]
    return f"{series.name}: {point.y.value:.4g} at {point.x:,.0f}"
