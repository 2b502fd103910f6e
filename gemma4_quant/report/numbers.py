"""How numbers are written: as many digits as their uncertainty leaves, and `-` for what is not known."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, isfinite, log10

from gemma4_quant.report.tables import Cell

UNKNOWN = "-"
_MAX_DIGITS = 4
_SMALLEST = 10.0**-_MAX_DIGITS
_LARGEST = 1e9  # larger numbers, and smaller ones, are written with an exponent


def number_cell(value: float | None, error: float | None = None, *, significant: int = 3) -> Cell:
    """Write a value with its error: to the error's first digit, but to at least so many significant digits.

    A value within its error gets no more than the error's second digit. An error of 0, as a single position or an
    exact count has, is not shown.
    """
    if value is None or not isfinite(value):
        return Cell(UNKNOWN)
    known = error is not None and isfinite(error) and error > 0
    if 0 < abs(value) < _SMALLEST or abs(value) >= _LARGEST:
        return Cell(f"{value:.1e}", f"{error:.0e}" if known else "")
    digits = _digits(value, significant)
    if known and error is not None:
        of_error = min(_MAX_DIGITS, -floor(log10(error)))
        # A value within its error has no significant digit: a second one of the error is all that helps.
        digits = max(0, of_error + 1) if error >= abs(value) else max(digits, of_error)
        return Cell(f"{value:.{digits}f}", f"{error:.{digits}f}")
    return Cell(f"{value:.{digits}f}")


def interval_text(low: float | None, high: float | None, *, significant: int = 3) -> str:
    """Write both ends of an interval to the same digits, or `-` when there is none."""
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        return UNKNOWN
    if 0 < max(abs(low), abs(high)) < _SMALLEST or max(abs(low), abs(high)) >= _LARGEST:
        return f"{low:.1e} to {high:.1e}"
    largest = max(abs(low), abs(high))
    digits = _digits(largest, significant)
    if high > low:  # the ends must differ in print when they differ
        digits = max(digits, min(_MAX_DIGITS, 1 - floor(log10(high - low))))
    return f"{low:.{digits}f} to {high:.{digits}f}"


def speed_cell(tokens_per_second: float, deviation: float) -> Cell:
    """Write a speed and its standard deviation with three digits or more."""
    if not isfinite(tokens_per_second):
        return Cell(UNKNOWN)
    if tokens_per_second >= _LARGEST:
        return Cell(f"{tokens_per_second:.1e}")
    digits = 0 if tokens_per_second >= 100 else 1 if tokens_per_second >= 10 else 2
    return Cell(f"{tokens_per_second:.{digits}f}", f"{deviation:.{digits}f}" if isfinite(deviation) else "")


@dataclass(frozen=True)
class SizeUnit:
    """A binary unit of so many bytes."""

    n_bytes: int
    name: str

    def cell(self, n_bytes: float | None) -> Cell:
        """Write a size in this unit, without its name."""
        return Cell(UNKNOWN if n_bytes is None else f"{n_bytes / self.n_bytes:,.{0 if self.n_bytes == 1 else 2}f}")


_UNITS = (SizeUnit(1 << 30, "GiB"), SizeUnit(1 << 20, "MiB"), SizeUnit(1 << 10, "KiB"), SizeUnit(1, "bytes"))


def size_unit(sizes: Iterable[float | None]) -> SizeUnit:
    """Return the unit that suits the largest of some sizes."""
    largest = max((size for size in sizes if size is not None), default=0)
    return next(unit for unit in _UNITS if largest >= unit.n_bytes or unit is _UNITS[-1])


def size_text(n_bytes: float) -> str:
    """Write a size in the binary unit that suits it, such as `4.34 MiB`; below 1024 in whole bytes."""
    unit = size_unit([n_bytes])
    return f"{unit.cell(n_bytes)} {unit.name}"


def count_text(n: int, thing: str) -> str:
    """Write a number of things, such as `1 file` and `2 files`."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def _digits(value: float, significant: int) -> int:
    """Return the decimals that show so many significant digits."""
    if value == 0:
        return significant - 1
    return max(0, min(_MAX_DIGITS, significant - 1 - floor(log10(abs(value)))))
