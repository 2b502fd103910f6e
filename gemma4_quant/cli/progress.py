"""Progress on stderr: bars where a person watches, lines in a log; both with the time that is left."""

import sys
import time
from typing import Any

_INTERVAL_S = 30.0
"""Between two lines on a stage that takes long."""


class LineProgress:
    """Names each stage as it begins, and tells now and then how long it will still take."""

    def __init__(self) -> None:
        """Begin without a stage."""
        self._label = ""
        self._total = self._done = 0
        self._started = self._told = 0.0

    def start(self, label: str, total: int, unit: str) -> None:
        """Write the stage and its size on a line."""
        size = f"{total / 1024**2:.1f} MiB" if unit == "B" else f"{total} {unit}s"
        sys.stderr.write(f"gemma4-quant: {label} ({size})\n")
        self._label, self._total, self._done = label, total, 0
        self._started = self._told = time.monotonic()

    def advance(self, n: int) -> None:
        """Write how far the stage is and how long it will still take, if it is time to."""
        self._done += n
        now = time.monotonic()
        if now - self._told < _INTERVAL_S or not 0 < self._done < self._total:
            return
        self._told = now
        left_s = (now - self._started) * (self._total - self._done) / self._done
        share = 100 * self._done // self._total
        sys.stderr.write(f"gemma4-quant: {self._label}: {share} % done, about {duration_text(left_s)} left\n")

    def finish(self) -> None:
        """Write nothing."""


def duration_text(seconds: float) -> str:
    """Write a duration with the unit that says enough: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class BarProgress:
    """Draws a tqdm bar for each stage; tqdm is imported with the first."""

    def __init__(self) -> None:
        """Begin without a bar."""
        self._bar: Any = None

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a bar; bytes get binary prefixes."""
        from tqdm import tqdm

        scale = unit == "B"
        self._bar = tqdm(
            total=total,
            desc=label,
            unit=unit,
            unit_scale=scale,
            unit_divisor=1024 if scale else 1000,
            leave=False,
            dynamic_ncols=True,
        )

    def advance(self, n: int) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._bar.update(n)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
