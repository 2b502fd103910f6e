"""How long work tells that it goes on: the library reports, the command line draws."""

from typing import Protocol


class Progress(Protocol):
    """Receiver of progress; called from one thread at a time."""

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a stage of `total` units, such as "B", "chunk" or "token"."""
        ...

    def advance(self, n: int) -> None:
        """Count `n` further units as done."""
        ...

    def finish(self) -> None:
        """End the stage."""
        ...


class SilentProgress:
    """Progress for library calls that did not ask for any."""

    def start(self, label: str, total: int, unit: str) -> None:
        """Ignore the stage."""

    def advance(self, n: int) -> None:
        """Ignore the step."""

    def finish(self) -> None:
        """Ignore the end."""
