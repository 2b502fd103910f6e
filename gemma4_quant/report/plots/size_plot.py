"""Divergence against size, with the Pareto front: what a file costs and what it loses."""

from collections.abc import Sequence
from itertools import pairwise
from xml.etree.ElementTree import Element

from gemma4_quant.report.numbers import size_text, size_unit
from gemma4_quant.report.plots.data import SizePoint
from gemma4_quant.report.plots.frame import Canvas, canvas, x_axis, y_axis
from gemma4_quant.report.plots.front import pareto_front
from gemma4_quant.report.plots.labels import Box, Mark, fitted, place_labels
from gemma4_quant.report.plots.marks import NARROW, Picture, Point, error_bar, label, line, marker, path
from gemma4_quant.report.plots.scales import Extent, Scale, linear_scale, log_scale

_ON_FRONT, _OFF_FRONT = 0, 1  # series: the front is told apart by colour and by shape


def draw_sizes(points: Sequence[SizePoint], width: float) -> Picture:
    """Draw files as points; the divergence's axis is logarithmic, for it spans decades."""
    on = canvas(width, 440 if width > NARROW else 400)
    unit = size_unit([point.n_bytes for point in points])
    x = linear_scale(
        [point.n_bytes / unit.n_bytes for point in points], on.across, n_ticks=7 if width > NARROW else 4
    )
    y = log_scale([value for point in points for value in point.divergence], on.upward)
    front = pareto_front([point.n_bytes for point in points], [point.divergence.value for point in points])
    places = [Point(x(point.n_bytes / unit.n_bytes), y(point.divergence.value)) for point in points]
    drawn = [*x_axis(on, x, f"size, {unit.name}"), *y_axis(on, y, "KL divergence, nat (lower is better)")]
    corners = _stairs([places[i] for i in front], on)
    if corners:
        drawn.append(path(corners, "front"))
    for i, point in enumerate(points):
        interval = _upright(places[i].x, Extent(y(point.divergence.low), y(point.divergence.high)))
        drawn.append(error_bar(*interval, _ON_FRONT if i in front else _OFF_FRONT))
    for i, point in enumerate(points):
        drawn.append(_mark(point, places[i], on_front=i in front))
    return Picture(on.width, on.height, [*drawn, *_names(points, places, front, corners, on, y)])


def _mark(point: SizePoint, at: Point, *, on_front: bool) -> Element:
    tip = f"{point.name}: {size_text(point.n_bytes)}, {point.divergence.value:.3g} nat"
    return marker(at, _ON_FRONT if on_front else _OFF_FRONT, radius=5 if on_front else 4, tip=tip)


def _stairs(front: Sequence[Point], on: Canvas) -> list[Point]:
    """Return the corners of the front: at each size, the least divergence that a file of at most this size has."""
    corners: list[Point] = []
    height = on.area.top
    for point in front:
        corners += [Point(point.x, height), point]
        height = point.y
    return [*corners, Point(on.area.right, height)] if corners else []


def _upright(x: float, extent: Extent) -> tuple[Point, Point]:
    return Point(x, extent.start), Point(x, extent.stop)


def _names(
    points: Sequence[SizePoint],
    places: Sequence[Point],
    front: Sequence[int],
    corners: Sequence[Point],
    on: Canvas,
    y: Scale,
) -> list[Element]:
    order = [*front, *(i for i in range(len(points)) if i not in front)]
    marks = [Mark(places[i], fitted(points[i].name, on.area.right / 2.2)) for i in order]
    intervals = [
        Box(place.x - 1, y(point.divergence.high), place.x + 1, y(point.divergence.low))
        for point, place in zip(points, places, strict=True)
    ]
    steps = [Box(min(a.x, b.x), min(a.y, b.y), max(a.x, b.x), max(a.y, b.y)).around(1) for a, b in pairwise(corners)]
    drawn = []
    for placed in place_labels(marks, on.area.around(-2), intervals, steps):
        if placed.leader is not None:
            drawn.append(line(*placed.leader, "leader"))
        drawn.append(label(placed.at, placed.name, anchor=placed.anchor))
    return drawn
