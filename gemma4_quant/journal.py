"""What an interrupted run leaves behind, so that the next one goes on instead of starting again.

`NAME.partial` holds the bytes, `NAME.partial.journal` says of what and how far: a line with the digest of the plan,
then one line for each tensor whose bytes are on disk. The journal is locked while a run writes.
"""

import os
import sys
from pathlib import Path

if sys.platform != "win32":  # where an open file cannot be replaced by another run anyway
    import fcntl

from gemma4_quant.destination import journal_of, partial_of
from gemma4_quant.errors import OutputError


class Journal:
    """Progress of one output file on disk."""

    def __init__(self, output: Path, digest: str) -> None:
        """Lock the journal of `output` and take it up if it belongs to the same plan, else begin it anew.

        Raises OutputError when another run is writing the same output, OSError when the journal cannot be written.
        """
        self._path = journal_of(output)
        self._file = self._path.open("a+", encoding="ascii", errors="replace")
        try:
            self._lock(output)
            self._done = self._read(digest) if partial_of(output).exists() else frozenset()
            if not self.resumes:
                self._file.truncate(0)
                self._file.write(digest + "\n")
        except BaseException:
            self._file.close()
            raise

    @property
    def resumes(self) -> bool:
        """Tell whether tensors of an earlier run can be kept."""
        return bool(self._done)

    def has(self, name: str) -> bool:
        """Tell whether an earlier run finished the tensor."""
        return _escaped(name) in self._done

    def add(self, names: list[str]) -> None:
        """Note tensors as done; their bytes must have reached the disk."""
        self._file.writelines(_escaped(name) + "\n" for name in names)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Stop writing; the journal stays."""
        self._file.close()

    def remove(self) -> None:
        """Delete the journal, after success or when the partial file is given up."""
        self._path.unlink(missing_ok=True)
        self.close()

    def _lock(self, output: Path) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"another run is writing {output}; wait for it or choose another name") from error

    def _read(self, digest: str) -> frozenset[str]:
        self._file.seek(0)
        lines = self._file.read().split("\n")
        # a line cut off by a crash has no newline and does not count
        return frozenset(lines[1:-1]) if lines[0] == digest else frozenset()


def _escaped(name: str) -> str:
    """Write a name on one line of ASCII; a hostile file's may hold anything."""
    return name.encode("unicode_escape").decode("ascii")
