"""Token probabilities, the candidate's against the reference's: a panel for each file."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from gemma4_quant.report.plots.data import Cloud
from gemma4_quant.report.plots.labels import BOLD_PIXELS, fitted
from gemma4_quant.report.plots.marks import NARROW, Anchor, Picture, Point, dots, element, label, line

_GAP, _TITLE, _BELOW, _LEFT = 20.0, 22.0, 28.0, 34.0  # pixels
# The outer labels stay within their panel, so that they do not meet the next one's.
_TICKS: tuple[tuple[float, str, Anchor], ...] = ((0.0, "0", "start"), (0.5, "0.5", "middle"), (1.0, "1", "end"))


@dataclass(frozen=True)
class _Grid:
    """How panels are laid out: so many in a row, each a square of `side` pixels."""

    n_panels: int
    n_columns: int
    side: float

    @property
    def n_rows(self) -> int:
        """Return the number of rows, the last of which may be short."""
        return -(-self.n_panels // self.n_columns)

    @property
    def height(self) -> float:
        """Return the height of the whole picture."""
        return self.corner(self.n_panels - 1).y + self.side + _BELOW

    def corner(self, i: int) -> Point:
        """Return the upper left corner of panel i."""
        row, column = divmod(i, self.n_columns)
        x = _LEFT + column * (self.side + _GAP)
        return Point(x, _TITLE * (row + 2) + row * (self.side + _GAP))


def draw_clouds(clouds: Sequence[Cloud], width: float) -> Picture:
    """Draw a square for each file, from probability 0 to 1 on both axes; on the diagonal nothing has changed."""
    grid = _grid(len(clouds), width)
    drawn = [label(Point(4, 16), "file's probability (up) by the reference's (right)", class_="title")]
    for i, cloud in enumerate(clouds):
        drawn += _panel(cloud, i, grid)
    return Picture(width, grid.height, drawn)


def _grid(n_panels: int, width: float) -> _Grid:
    n_columns = max(1, min(n_panels, 4 if width > NARROW else 2))
    # A single panel, or two, would fill the screen if they took all the width.
    side = min(260.0, (width - _LEFT - 8 - _GAP * (n_columns - 1)) / n_columns)
    return _Grid(n_panels, n_columns, side)


def _panel(cloud: Cloud, i: int, grid: _Grid) -> list[Element]:
    corner, side = grid.corner(i), grid.side
    left, top, right, bottom = corner.x, corner.y, corner.x + side, corner.y + side
    drawn = [
        element("rect", x=left, y=top, width=side, height=side, class_="panel"),
        line(Point(left, bottom), Point(right, top), "diagonal"),
        label(Point(left, top - 7), fitted(cloud.name, side, BOLD_PIXELS), class_="group"),
    ]
    for share, text, anchor in _TICKS:
        if i % grid.n_columns == 0:
            drawn.append(label(Point(left - 6, bottom - share * side + 4.5), text, anchor="end", class_="tick"))
        if i + grid.n_columns >= grid.n_panels:
            drawn.append(label(Point(left + share * side, bottom + 17), text, anchor=anchor, class_="tick"))
    places = [Point(left + share_of(p) * side, bottom - share_of(q) * side) for p, q in cloud.pairs]
    drawn.append(dots(places, 0))
    return drawn


def share_of(probability: float) -> float:
    """Return a probability within its limits: rounding may put it a little outside."""
    return min(1.0, max(0.0, probability))
