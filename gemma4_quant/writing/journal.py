"""What an interrupted run leaves behind, so that the next one goes on instead of starting again.

`NAME.partial` (one for each shard) holds the bytes, `NAME.partial.journal` says of what and how far: a line with the
digest of the plan, one line for each tensor whose bytes are there, and a last one when all are and only renaming is
left. The journal is locked while a run writes.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

if sys.platform != "win32":  # where an open file cannot be replaced by another run anyway
    import fcntl

from gemma4_quant.errors import OutputError
from gemma4_quant.writing.destination import journal_of

_DONE = "done "
_COMPLETE = "complete"


class Journal:
    """Progress of one output on disk."""

    def __init__(self, output: Path, digest: str, *, durable: bool = True) -> None:
        """Lock the journal of `output` and read it; what it says counts if it belongs to the same plan.

        durable: have every line on disk before going on. Raises OutputError when another run is writing the same
        output, OSError when the journal cannot be written.
        """
        self._path = journal_of(output)
        self._digest = digest
        self._durable = durable
        self._file = self._open_locked(output)
        try:
            lines = self._read()
        except BaseException:
            self._file.close()
            raise
        self._done = {line for line in lines if line.startswith(_DONE)}
        self._complete = _COMPLETE in lines

    @property
    def is_new(self) -> bool:
        """Tell whether nothing has been written, now or by an earlier run of any plan."""
        return os.fstat(self._file.fileno()).st_size == 0

    @property
    def resumes(self) -> bool:
        """Tell whether tensors are done."""
        return bool(self._done) or self._complete

    @property
    def is_complete(self) -> bool:
        """Tell whether all bytes are on disk and only renaming may be left."""
        return self._complete

    def has(self, name: str) -> bool:
        """Tell whether a tensor is done."""
        return _line_of(name) in self._done

    def begin(self) -> None:
        """Forget an earlier run."""
        self._done, self._complete = set(), False
        self._file.truncate(0)
        self._write([self._digest])

    def add(self, names: Iterable[str]) -> None:
        """Note tensors as done; their bytes must be where they survive what the journal does."""
        lines = [_line_of(name) for name in names]
        self._write(lines)
        self._done.update(lines)

    def complete(self) -> None:
        """Note that every byte of the output is written."""
        self._complete = True
        self._write([_COMPLETE])

    def close(self) -> None:
        """Stop writing; the journal stays."""
        self._file.close()

    def remove(self) -> None:
        """Delete the journal, after success or when the partial files are given up."""
        if sys.platform == "win32":  # an open file cannot be deleted
            self._file.close()
        self._path.unlink(missing_ok=True)  # elsewhere before the lock is gone, or it might be another run's
        self._file.close()

    def _open_locked(self, output: Path) -> TextIO:
        while True:
            file = self._path.open("a+", encoding="ascii", errors="replace", newline="\n")
            try:
                if _lock(file) and not _is_same(file, self._path):
                    file.close()  # a run that just ended has deleted the journal we opened
                    continue
            except BlockingIOError as error:
                file.close()
                raise OutputError(f"another run is writing {output}; wait for it or choose another name") from error
            except BaseException:
                file.close()
                raise
            return file

    def _read(self) -> list[str]:
        self._file.seek(0)
        text = self._file.read()
        self._file.truncate(text.rfind("\n") + 1)  # a line cut off by a crash does not count
        lines = text.split("\n")[:-1]
        return lines[1:] if lines and lines[0] == self._digest else []

    def _write(self, lines: Iterable[str]) -> None:
        self._file.writelines(line + "\n" for line in lines)
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())


def _lock(file: TextIO) -> bool:
    """Lock a file for this process alone, where that can be done; raises BlockingIOError when another has it."""
    if sys.platform == "win32":
        return False
    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _is_same(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _line_of(name: str) -> str:
    """Write a name on one line of ASCII; a hostile file's may hold anything."""
    return _DONE + name.encode("unicode_escape").decode("ascii")
