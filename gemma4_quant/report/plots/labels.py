"""Where names of marks go, so that no two overlap: a greedy search over places around each mark."""

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

from gemma4_quant.report.plots.marks import FONT_PIXELS, Anchor, Point

_ASCENT, _DESCENT = 0.88, 0.30  # of the font size: room above and below the baseline
BOLD_PIXELS = 1.1 * FONT_PIXELS
"""Bold letters are as wide as those of a font of this size."""

_MARGIN = 3.0  # pixels between a name and anything else
# Widths in ems, a little above those of Arial and Segoe UI: which font a reader has is not known.
_NARROW, _MIDDLE, _WIDE, _FULL = 0.34, 0.59, 0.92, 1.04


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Return whether the two share a point inside."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def contains(self, other: "Box") -> bool:
        """Return whether the other lies within this one."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )

    def around(self, margin: float) -> "Box":
        """Return it with a margin on each side."""
        return Box(self.left - margin, self.top - margin, self.right + margin, self.bottom + margin)


@dataclass(frozen=True)
class Mark:
    """A mark that wants a name; `radius` in pixels is what the name must keep clear of."""

    at: Point
    name: str
    radius: float = 5.0


@dataclass(frozen=True)
class PlacedLabel:
    """A name with its place: `at` is the baseline's start, middle or end; `leader` a line to it, if needed."""

    name: str
    at: Point
    anchor: Anchor
    box: Box
    leader: tuple[Point, Point] | None


def text_width(text: str, font_pixels: float = FONT_PIXELS) -> float:
    """Return an upper estimate of a text's width in pixels."""
    return font_pixels * sum(map(_letter_width, text))


def fitted(text: str, width: float, font_pixels: float = FONT_PIXELS) -> str:
    """Cut a long text in its middle: the end of a file's name tells its type."""
    if text_width(text, font_pixels) <= width:
        return text
    kept = next((n for n in range(len(text) - 1, 0, -1) if text_width(_cut(text, n), font_pixels) <= width), 0)
    return _cut(text, kept)


def place_labels(
    marks: Sequence[Mark], bounds: Box, obstacles: Sequence[Box] = (), lines: Sequence[Box] = ()
) -> tuple[PlacedLabel, ...]:
    """Place the names of marks, the first ones first; a name without room is left out.

    No name overlaps another, a mark, an obstacle, or leaves the bounds; it is drawn across one of the lines only when
    there is no other place.
    """
    taken = [*obstacles, *(_box_of(mark) for mark in marks)]
    placed: list[PlacedLabel] = []
    for mark in marks:
        free = [each for each in _candidates(mark) if _is_free(each.box, taken, bounds)]
        clear = (each for each in free if not any(each.box.overlaps(line) for line in lines))
        candidate = next(clear, free[0] if free else None)
        if candidate is not None:
            placed.append(candidate)
            taken.append(candidate.box)
    return tuple(placed)


def _is_free(box: Box, taken: Sequence[Box], bounds: Box) -> bool:
    return bounds.contains(box) and not any(box.overlaps(other) for other in taken)


def _box_of(mark: Mark) -> Box:
    return Box(mark.at.x, mark.at.y, mark.at.x, mark.at.y).around(mark.radius)


def _candidates(mark: Mark) -> list[PlacedLabel]:
    """Return places in order of preference: beside, above, below, then farther off with a line to the mark."""
    found = []
    for distance in (mark.radius + _MARGIN, mark.radius + 16, mark.radius + 30):
        directions: tuple[tuple[float, float, Anchor], ...] = (
            (1, 0, "start"), (-1, 0, "end"), (0, -1, "middle"), (0, 1, "middle"),
            (0.75, -0.75, "start"), (0.75, 0.75, "start"), (-0.75, -0.75, "end"), (-0.75, 0.75, "end"),
        )  # fmt: skip
        for dx, dy, anchor in directions:
            end = Point(mark.at.x + dx * distance, mark.at.y + dy * distance)
            is_far = distance > mark.radius + _MARGIN
            found.append(_placed(mark, end, dy, anchor, with_leader=is_far))
    return found


def _placed(mark: Mark, end: Point, dy: float, anchor: Anchor, *, with_leader: bool) -> PlacedLabel:
    width = text_width(mark.name)
    left = end.x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    # Above a mark the descent must stay clear of it, below it the ascent; beside it the letters are centred.
    share = {-1: 0.0, 0: 0.5, 1: 1.0}[(dy > 0) - (dy < 0)]
    top = end.y - (1 - share) * (_ASCENT + _DESCENT) * FONT_PIXELS
    baseline = top + _ASCENT * FONT_PIXELS
    box = Box(left, top, left + width, top + (_ASCENT + _DESCENT) * FONT_PIXELS)
    leader = (mark.at, end) if with_leader else None
    return PlacedLabel(mark.name, Point(end.x, baseline), anchor, box, leader)


def _letter_width(letter: str) -> float:
    if east_asian_width(letter) in "WF":
        return _FULL
    if letter in "iljtfrI.,:;!|'`()[]- ":
        return _NARROW
    return _WIDE if letter in "mwMWQO@%—…\N{REPLACEMENT CHARACTER}" or ord(letter) > 0x2FF else _MIDDLE


def _cut(text: str, n_kept: int) -> str:
    head = n_kept // 3
    return f"{text[:head]}…{text[len(text) - (n_kept - head) :]}"
