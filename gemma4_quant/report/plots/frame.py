"""What stands around the marks of a plot: grid, axes with their titles, legend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element

from gemma4_quant.report.plots.labels import Box, fitted, text_width
from gemma4_quant.report.plots.marks import Point, label, line, marker, polyline
from gemma4_quant.report.plots.scales import Extent, Scale

_TICK_GAP = 8.0  # least room between two tick labels
_ROW = 20.0  # height of a row of the legend
_SWATCH = 26.0  # width of a legend's sample, its gap included


@dataclass(frozen=True)
class Canvas:
    """A picture's size and the area that values are drawn in."""

    width: float
    height: float
    area: Box

    @property
    def across(self) -> Extent:
        """Return the horizontal axis in pixels."""
        return Extent(self.area.left, self.area.right)

    @property
    def upward(self) -> Extent:
        """Return the vertical axis in pixels, low values at the bottom."""
        return Extent(self.area.bottom, self.area.top)


@dataclass(frozen=True)
class Legend:
    """Samples and names of series, in rows, and how high they are together."""

    marks: tuple[Element, ...]
    height: float


def canvas(width: float, height: float, *, left: float = 58, right: float = 16, top: float = 30) -> Canvas:
    """Return a canvas with room for tick labels at the left, and for tick labels and the axis' title below."""
    return Canvas(width, height, Box(left, top, width - right, height - 46))


def x_axis(on: Canvas, scale: Scale, title: str) -> list[Element]:
    """Return grid lines, tick labels and title of the horizontal axis; labels without room are left out."""
    area = on.area
    drawn = [line(Point(area.left, area.bottom), Point(area.right, area.bottom), "axis")]
    free_from = 0.0
    for tick in scale.ticks:
        x, half = scale(tick.value), text_width(tick.label) / 2
        drawn.append(line(Point(x, area.top), Point(x, area.bottom), "grid"))
        if x - half >= free_from and x + half <= on.width:
            drawn.append(label(Point(x, area.bottom + 18), tick.label, anchor="middle", class_="tick"))
            free_from = x + half + _TICK_GAP
    drawn.append(label(Point((area.left + area.right) / 2, on.height - 6), title, anchor="middle", class_="title"))
    return drawn


def y_axis(on: Canvas, scale: Scale, title: str, *, title_y: float | None = None) -> list[Element]:
    """Return grid lines, tick labels and title of the vertical axis; the title lies level above its upper end."""
    area = on.area
    drawn = []
    for tick in scale.ticks:
        y = scale(tick.value)
        drawn.append(line(Point(area.left, y), Point(area.right, y), "grid"))
        drawn.append(label(Point(area.left - 8, y + 4.5), tick.label, anchor="end", class_="tick"))
    drawn.append(label(Point(4, area.top - 14 if title_y is None else title_y), title, class_="title"))
    return drawn


def legend(
    names: Sequence[str],
    width: float,
    *,
    sample: Literal["mark", "line"] = "mark",
    series: Sequence[int] | None = None,
) -> Legend:
    """Lay out names with their samples from the upper left corner, as many in a row as fit into `width`.

    series: which colour and shape each name has; 0, 1, 2, … when None.
    """
    marks: list[Element] = []
    x, y = 4.0, 16.0
    for number, name in zip(series or range(len(names)), names, strict=True):
        written = fitted(name, width - _SWATCH - 8)
        needed = _SWATCH + text_width(written) + 10
        if x > 4 and x + needed > width:
            x, y = 4.0, y + _ROW
        middle = y - 4.5
        if sample == "line":
            marks.append(polyline([Point(x, middle), Point(x + 20, middle)], number))
        marks.append(marker(Point(x + 10, middle), number))
        marks.append(label(Point(x + _SWATCH, y), written))
        x += needed
    return Legend(tuple(marks), y + 8 if names else 0.0)
