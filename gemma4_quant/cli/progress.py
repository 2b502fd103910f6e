"""Progress on stderr: bars where a person watches, a line for each stage in a log."""

import sys
from typing import Any


class LineProgress:
    """Names each stage as it begins."""

    def start(self, label: str, total: int, unit: str) -> None:
        """Write the stage and its size on a line."""
        size = f"{total / 1024**2:.1f} MiB" if unit == "B" else f"{total} {unit}s"
        sys.stderr.write(f"gemma4-quant: {label} ({size})\n")

    def advance(self, n: int) -> None:
        """Write nothing."""

    def finish(self) -> None:
        """Write nothing."""


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
