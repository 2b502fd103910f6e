"""What a hostile case is: something on disk to be given to the readers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One hostile input.

    name: for the report. path: what a user would name. is_quick: only looked into, neither converted nor quantized.
    """

    name: str
    path: Path
    is_quick: bool = False


Cases = Callable[[Path], Iterator[Case]]
"""Write cases below a directory, each just before it is yielded; the next one may replace it."""
