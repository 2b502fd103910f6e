"""The file that holds an output's bytes until all are there, written at offsets from any thread."""

import contextlib
import ctypes
import errno
import os
import sys
import threading
from pathlib import Path

from gemma4_quant.writing.destination import partial_of

_MODE = 0
"""fallocate's mode that reserves space and sets the size (linux/falloc.h)."""


class PartialFile:
    """`NAME.partial` of an output file, as large as the output from the start."""

    def __init__(self, output: Path, n_bytes: int, *, keep: bool) -> None:
        """Open it, with what an earlier run wrote if `keep`; raises OSError, of a full disk too where it can tell."""
        self._n_unsynced = 0
        self._file = partial_of(output).open("r+b" if keep else "w+b", buffering=0)
        self._lock = threading.Lock()
        try:
            self._file.truncate(n_bytes)
            _reserve(self._file.fileno(), n_bytes)
        except BaseException:
            self._file.close()
            raise

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write all of `data` (bytes) at `offset`."""
        view = memoryview(data)
        while view:
            n_written = self._write_some(offset, view)
            view = view[n_written:]
            offset += n_written
            with self._lock:
                self._n_unsynced += n_written

    def _write_some(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._file.fileno(), view, offset)
        with self._lock:  # Windows has no positioned write
            self._file.seek(offset)
            return self._file.write(view) or 0

    def sync(self) -> None:
        """Have everything written so far on disk."""
        with self._lock:
            n_bytes, self._n_unsynced = self._n_unsynced, 0
        if n_bytes:
            getattr(os, "fdatasync", os.fsync)(self._file.fileno())

    def close(self) -> None:
        """Stop writing; the file stays."""
        self._file.close()


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable, where directories can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Reserve space for a file, so that a full disk shows now and blocks need not be found one by one later.

    os.posix_fallocate would write zeros where the file system cannot reserve; this leaves such files sparse.
    """
    if sys.platform != "linux" or n_bytes == 0:
        return
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if fallocate is None:  # a libc without it
        return
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while fallocate(descriptor, _MODE, 0, n_bytes):
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
