"""SVG elements. Built as a tree and written by the standard library, which escapes; never pasted from strings.

Nothing here sets a colour: classes do, which the report's style sheet fills for light, dark and paper. A style
attribute would be refused by the report's Content-Security-Policy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element, tostring

from gemma4_quant.report.printable import printable

WIDE, NARROW = 880.0, 352.0
"""Widths in pixels, for screens and telephones: one picture scaled to both would have too small letters on one."""

N_SERIES = 8
"""So many series are told apart by colour, shape of the mark and dash of the line."""

FONT_PIXELS = 13
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4", "1 4", "9 3 2 3 2 3")
_SHAPES = ("circle", "square", "triangle", "diamond", "wedge", "cross", "plus", "bar")
_SVG = "http://www.w3.org/2000/svg"

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Point:
    """A place in a plot, in pixels from its upper left corner."""

    x: float
    y: float


def element(tag: str, *children: Element, text: str | None = None, **attributes: str | float) -> Element:
    """Make an element; `class_` becomes `class`, `stroke_width` `stroke-width`; numbers get a tenth of a pixel."""
    made = Element(tag)
    for name, value in attributes.items():
        made.set(
            name.rstrip("_").replace("_", "-"), printable(value) if isinstance(value, str) else pixels(float(value))
        )
    if text is not None:
        made.text = printable(text)
    made.extend(children)
    return made


def pixels(value: float) -> str:
    """Write a coordinate to a tenth of a pixel, without needless characters."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


@dataclass(frozen=True)
class Picture:
    """Marks and the size in pixels of the picture that they fill."""

    width: float
    height: float
    marks: Sequence[Element]


def document(picture: Picture, title: str, description: str, name: str) -> Element:
    """Return an SVG picture with the title and description that screen readers speak; `name` is in their ids."""
    return element(
        "svg",
        element("title", text=title, id=f"{name}-title"),
        element("desc", text=description, id=f"{name}-desc"),
        *picture.marks,
        xmlns=_SVG,
        viewBox=f"0 0 {pixels(picture.width)} {pixels(picture.height)}",
        width=picture.width,
        height=picture.height,
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def markup(picture: Element) -> str:
    """Return an element as text that is both XML and HTML."""
    return tostring(picture, encoding="unicode", short_empty_elements=True)


def label(at: Point, text: str, *, anchor: Anchor = "start", class_: str = "label") -> Element:
    """Return text whose baseline starts, is centred or ends at a place."""
    return element("text", text=text, x=at.x, y=at.y, text_anchor=anchor, class_=class_)


def line(start: Point, end: Point, class_: str) -> Element:
    """Return a straight line."""
    return path((start, end), class_)


def path(points: Sequence[Point], class_: str) -> Element:
    """Return a line through points."""
    return element("path", d="M" + "L".join(map(_xy, points)), class_=class_)


def polyline(points: Sequence[Point], series: int) -> Element:
    """Return a line through points, in the colour and dash of a series."""
    dash = _DASHES[series % N_SERIES]
    drawn = path(points, f"line {series_class(series)}")
    if dash:
        drawn.set("stroke-dasharray", dash)
    return drawn


def band(points: Sequence[Point], lower: Sequence[Point], series: int) -> Element:
    """Return the area between two lines: the uncertainty of a series."""
    outline = [*points, *reversed(lower)]
    return element("path", d="M" + "L".join(map(_xy, outline)) + "Z", class_=f"band {series_class(series)}")


def error_bar(start: Point, end: Point, series: int) -> Element:
    """Return the interval of a value."""
    return path((start, end), f"error {series_class(series)}")


def dots(points: Iterable[Point], series: int) -> Element:
    """Return many small round dots as one path, a few bytes each: strokes of no length with round ends."""
    return element("path", d="".join(f"M{_xy(point)}h0" for point in points), class_=f"dots {series_class(series)}")


def marker(at: Point, series: int, *, radius: float = 4.5, tip: str | None = None) -> Element:
    """Return the mark of a series; `tip` is what a pointer that rests on it shows."""
    shape = _SHAPES[series % N_SERIES]
    open_shape = shape in ("cross", "plus", "bar")
    drawn = element(
        "path", d=_outline(shape, at, radius), class_=f"{'open' if open_shape else 'mark'} {series_class(series)}"
    )
    if tip is not None:
        drawn.append(element("title", text=tip))
    return drawn


def series_class(series: int) -> str:
    """Return the class that the style sheet colours."""
    return f"s{series % N_SERIES}"


def _outline(shape: str, at: Point, r: float) -> str:
    x, y = at.x, at.y
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "triangle": [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        "diamond": [(0, -1.25), (1.1, 0), (0, 1.25), (-1.1, 0)],
        "wedge": [(0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
    }
    if shape in corners:
        return "M" + "L".join(_xy(Point(x + dx * r, y + dy * r)) for dx, dy in corners[shape]) + "Z"
    strokes: dict[str, list[tuple[float, float, float, float]]] = {
        "cross": [(-0.9, -0.9, 0.9, 0.9), (-0.9, 0.9, 0.9, -0.9)],
        "plus": [(-1.2, 0, 1.2, 0), (0, -1.2, 0, 1.2)],
        "bar": [(0, -1.2, 0, 1.2)],
    }
    if shape in strokes:
        return "".join(
            f"M{_xy(Point(x + a * r, y + b * r))}L{_xy(Point(x + c * r, y + d * r))}" for a, b, c, d in strokes[shape]
        )
    half, across = pixels(r), pixels(2 * r)
    return f"M{_xy(Point(x - r, y))}a{half} {half} 0 1 0 {across} 0a{half} {half} 0 1 0 -{across} 0"


def _xy(point: Point) -> str:
    return f"{pixels(point.x)} {pixels(point.y)}"
