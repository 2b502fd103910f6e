"""Scales: from values to pixels, with round ticks, linear or logarithmic."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import Protocol

_LARGEST = 1e15  # what is beyond, or closer to 0 than its inverse, is put at the end of its axis
_EPSILON = 1e-9  # of a step: keeps a tick that rounding puts just outside
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Extent:
    """The ends of an axis in pixels; `start` is where low values lie, so `start > stop` for an upward axis."""

    start: float
    stop: float

    @property
    def length(self) -> float:
        """Return its length in pixels."""
        return abs(self.stop - self.start)


@dataclass(frozen=True)
class Tick:
    """A value that an axis names, and how it is written."""

    value: float
    label: str


class Scale(Protocol):
    """What a plot needs of an axis."""

    @property
    def extent(self) -> Extent:
        """Return the axis' ends in pixels."""

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """Return the ticks, from low to high."""

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; values beyond the axis are put at its end."""


@dataclass(frozen=True)
class LinearScale:
    """Equal steps of value are equal distances; `low < high` are the values at the ends."""

    low: float
    high: float
    extent: Extent
    ticks: tuple[Tick, ...]

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return _within(self.extent, (value - self.low) / (self.high - self.low))


@dataclass(frozen=True)
class LogScale:
    """Equal factors are equal distances; `0 < low < high`. What is not positive is put at the low end."""

    low: float
    high: float
    extent: Extent
    ticks: tuple[Tick, ...]

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        if value <= self.low:
            return self.extent.start
        return _within(self.extent, log10(value / self.low) / log10(self.high / self.low))


def linear_scale(
    values: Iterable[float], extent: Extent, *, n_ticks: int = 6, from_zero: bool = False
) -> LinearScale:
    """Return a scale over all finite values, its ends at round ticks or a little beyond the outermost value.

    from_zero: begin at 0. With no value at all, or a single one, the axis still has a length.
    """
    low, high = _range(values)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low <= _EPSILON * max(abs(low), abs(high)) or high - low < 1 / _LARGEST:
        margin = max(abs(low) / 2, 1.0 if low == 0 else 1 / _LARGEST)
        low, high = (0.0, 2 * margin) if from_zero else (low - margin, high + margin)
    step = _round_step((high - low) / n_ticks)
    if not from_zero:
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    else:
        high += 0.04 * (high - low)
    first, last = ceil(low / step - _EPSILON), floor(high / step + _EPSILON)
    digits = max(0, -floor(log10(step) + _EPSILON))
    ticks = tuple(Tick(n * step, f"{n * step:,.{digits}f}".replace("-", "−")) for n in range(first, last + 1))
    return LinearScale(low, high, extent, ticks)


def log_scale(values: Iterable[float], extent: Extent, *, max_ticks: int = 8) -> LogScale:
    """Return a scale over all positive finite values, with as many ticks of one digit as have room."""
    low, high = _range(value for value in values if value >= 1 / _LARGEST)
    if low <= 0:
        low, high = 0.1, 1.0
    low, high = low / 1.15, high * 1.15
    if high / low < 4:  # at least three of the ticks below are on such an axis
        middle = (low * high) ** 0.5
        low, high = middle / 2, middle * 2
    return LogScale(low, high, extent, _log_ticks(low, high, max_ticks))


def _log_ticks(low: float, high: float, max_ticks: int) -> tuple[Tick, ...]:
    first, last = floor(log10(low)), ceil(log10(high))
    for mantissas in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = _ticks_of(mantissas, range(first, last + 1), low, high)
        if len(ticks) <= max_ticks:
            return ticks
    stride = ceil(len(ticks) / max_ticks)
    return tuple(tick for tick in ticks if round(log10(tick.value)) % stride == 0)


def _ticks_of(mantissas: Sequence[int], exponents: range, low: float, high: float) -> tuple[Tick, ...]:
    found = (float(f"{mantissa}e{exponent}") for exponent in exponents for mantissa in mantissas)
    return tuple(Tick(value, power_text(value)) for value in found if low <= value <= high)


def power_text(value: float) -> str:
    """Write a positive value short: plain between 0.001 and 100,000, else as a power of ten, such as `2·10⁻⁵`."""
    exponent = floor(log10(value) + _EPSILON)
    if -3 <= exponent < 5:
        return f"{value:,.{max(0, -exponent)}f}"
    mantissa = round(value / 10.0**exponent)
    power = "10" + str(exponent).translate(_SUPERSCRIPTS)
    return power if mantissa == 1 else f"{mantissa}·{power}"


def _range(values: Iterable[float]) -> tuple[float, float]:
    finite = [value for value in values if isfinite(value) and abs(value) <= _LARGEST]
    return (min(finite), max(finite)) if finite else (0.0, 0.0)


def _round_step(step: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** floor(log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - _EPSILON))


def _within(extent: Extent, share: float) -> float:
    return extent.start + min(1.0, max(0.0, share)) * (extent.stop - extent.start)
