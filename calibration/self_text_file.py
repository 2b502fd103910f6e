"""The file that a model's own text is kept in: chats as lines of JSON, written in parts, there whole or not at all.

Beside `NAME.partial` a small journal says how far it is complete, so that a run that was killed goes on.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gemma4_quant.writing.destination import cannot_write, journal_of, partial_of

Line = Mapping[str, Any]
"""Fields of a line: `messages` or `transcript`, as read_documents takes them, and what the text was made with."""


@dataclass(frozen=True)
class Written:
    """How far the text has come.

    n_begun: texts that were begun. n_tokens: tokens of those kept. n_asked, n_answered: prompts put to the model by
    its template, and how many of them gave something to keep.
    """

    n_begun: int = 0
    n_tokens: int = 0
    n_asked: int = 0
    n_answered: int = 0


class SelfTextFile:
    """A text on its way to `output`."""

    def __init__(self, output: Path, run: str) -> None:
        """Name the file; run: changes with everything that decides about the text, and is in each of its lines."""
        self._output = output
        self._run = run
        self._n_bytes = 0

    def is_complete(self) -> bool:
        """Tell whether the text is there already, from the same model, options and prompts."""
        try:
            with self._output.open(encoding="utf-8") as file:
                return bool(json.loads(file.readline(1 << 26))["run"] == self._run)
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def take_up(self) -> Written:
        """Return how far an earlier run came; nothing is written when there was none of the same kind."""
        try:
            state = json.loads(journal_of(self._output).read_text(encoding="utf-8"))
            n_bytes = state.pop("n_bytes")
            if state.pop("run") == self._run and n_bytes <= partial_of(self._output).stat().st_size:
                written = Written(**state)
                self._n_bytes = n_bytes
                return written
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass
        return Written()

    def add(self, lines: Iterable[Line], written: Written) -> None:
        """Add lines and note how far the text is with them; raises OutputError when the disk refuses."""
        text = "".join(json.dumps({**line, "run": self._run}, ensure_ascii=False) + "\n" for line in lines)
        try:
            with partial_of(self._output).open("r+b" if self._n_bytes else "wb") as file:
                file.truncate(self._n_bytes)
                file.seek(self._n_bytes)
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            self._n_bytes += len(text.encode())
            journal = journal_of(self._output)
            state = {**asdict(written), "run": self._run, "n_bytes": self._n_bytes}
            new = journal.with_name(journal.name + ".new")
            new.write_text(json.dumps(state), encoding="utf-8")
            new.replace(journal)
        except OSError as error:
            raise cannot_write(self._output, error) from error

    def finish(self) -> None:
        """Give the file its name; raises OutputError when that fails."""
        try:
            partial_of(self._output).replace(self._output)
        except OSError as error:
            raise cannot_write(self._output, error) from error
        with contextlib.suppress(OSError):
            journal_of(self._output).unlink(missing_ok=True)
