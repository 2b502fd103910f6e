"""What plots draw, as plain numbers: nothing here knows where they were measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

from gemma4_quant.errors import InputError


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval; all finite, `low <= value <= high`."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(map(isfinite, (self.value, self.low, self.high))):
            raise InputError(f"a plot cannot show {self.value} between {self.low} and {self.high}")

    def __iter__(self) -> Iterator[float]:
        """Yield the three numbers, for what looks for the ends of an axis."""
        yield from (self.low, self.value, self.high)


def interval(value: float, low: float, high: float) -> Interval | None:
    """Return a value with its interval, widened where it does not hold the value; None when one is not finite."""
    if not all(map(isfinite, (value, low, high))):
        return None
    return Interval(value, min(low, value), max(high, value))


@dataclass(frozen=True)
class LinePoint:
    """A point of a line: where, and how much."""

    x: float
    y: Interval


@dataclass(frozen=True)
class Series:
    """A line: its name and its points from left to right."""

    name: str
    points: tuple[LinePoint, ...]


@dataclass(frozen=True)
class SizePoint:
    """A file: its name, its size in bytes, and how far it is from the reference in nats."""

    name: str
    n_bytes: int
    divergence: Interval


@dataclass(frozen=True)
class Group:
    """Values under a common heading: one for each series, None where nothing was measured."""

    name: str
    values: tuple[Interval | None, ...]


@dataclass(frozen=True)
class Cloud:
    """Pairs of probabilities under a common name: the reference's and the candidate's of the same token."""

    name: str
    pairs: tuple[tuple[float, float], ...]


def wants_log(values: Sequence[float], factor: float = 8) -> bool:
    """Return whether positive values spread so far that a linear axis would crowd the small ones."""
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) / min(positive) > factor
