"""What an interrupted run leaves behind, so that the next one goes on instead of starting again.

`NAME.partial` holds the bytes, `NAME.partial.journal` says of what and how far: a line with the digest of the plan,
then one line for each tensor whose bytes are on disk.
"""

import os
from pathlib import Path

from gemma4_quant.destination import journal_of, partial_of


class Journal:
    """Progress of one output file on disk."""

    def __init__(self, output: Path, digest: str) -> None:
        """Take up the journal of `output` if it belongs to the same plan, else begin a new one."""
        self._path = journal_of(output)
        self._digest = digest
        self.done = self._read() if partial_of(output).exists() else frozenset()

    @property
    def resumes(self) -> bool:
        """Tell whether tensors of an earlier run can be kept."""
        return bool(self.done)

    def begin(self) -> None:
        """Open the journal for writing, keeping what earlier runs finished."""
        if not self.resumes:
            self._path.write_text(self._digest + "\n", encoding="ascii")
        self._file = self._path.open("a", encoding="ascii")

    def add(self, names: list[str]) -> None:
        """Note tensors as done; their bytes must have reached the disk."""
        self._file.writelines(name + "\n" for name in names)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Stop writing; the journal stays."""
        self._file.close()

    def remove(self) -> None:
        """Delete the journal, after success or when the partial file is given up."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _read(self) -> frozenset[str]:
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            return frozenset()
        if lines[0] != self._digest:
            return frozenset()
        return frozenset(lines[1:-1])  # a line cut off by a crash has no newline and does not count
