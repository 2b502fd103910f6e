"""A model as the pipeline sees it: metadata, and tensors whose rows are read when they are needed.

Checkpoints (through a converter) and GGUF files both become a `Model`; everything after that is one path.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np

from gemma4_quant.arrays import ByteRows
from gemma4_quant.errors import InputError
from gemma4_quant.ggml import GgmlType, row_bytes
from gemma4_quant.metadata import Metadata


class RowSource(Protocol):
    """Where the rows of a tensor come from; safe to read from several threads."""

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop as stored, (stop − start, row_bytes) uint8.

        Raises InputError when the file has become shorter than it was.
        """
        ...

    @property
    def identity(self) -> bytes:
        """Return bytes that change whenever the rows do, cheap to make: no weight of a file is read for it."""
        ...

    @property
    def files(self) -> tuple["DataFile", ...]:
        """Return the files that the rows come from; empty for rows made in memory."""
        ...


class DataFile:
    """A file opened once for positioned reads from any thread; closed with the last tensor that uses it.

    Reads are copies, not memory maps: a map of a file that is truncated meanwhile kills the process.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`; raises InputError when it cannot be read, or is a pipe, a device or a directory."""
        try:
            if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
                raise InputError(f"{path} is not a regular file")
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise InputError(f"cannot open {path}: {error.strerror}") from error
        self.path = path
        stat = os.fstat(self._file.fileno())
        self.n_bytes = stat.st_size
        self.modified_ns = stat.st_mtime_ns
        self._seek_lock = threading.Lock()

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` (bytes) from `offset`; raises InputError when the file ends before."""
        done = 0
        while done < len(target):
            n_read = self._read_some(offset + done, target[done:])
            if n_read == 0:
                raise InputError(f"{self.path} ends at byte {offset + done}, before data that it should hold")
            done += n_read

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Return `n_bytes` from `offset`; see read_into."""
        data = bytearray(n_bytes)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def _read_some(self, offset: int, target: memoryview) -> int:
        try:
            if hasattr(os, "preadv"):
                return os.preadv(self._file.fileno(), [target], offset)
            with self._seek_lock:  # Windows has no positioned read
                self._file.seek(offset)
                return self._file.readinto(target) or 0
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error


@dataclass(frozen=True)
class FileRows:
    """Rows that lie one after the other in a file; row 0 starts at byte `offset`."""

    file: DataFile
    offset: int
    row_bytes: int

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop with one positioned read; see RowSource."""
        rows = np.empty((stop - start, self.row_bytes), np.uint8)
        self.file.read_into(self.offset + start * self.row_bytes, rows.data.cast("B"))
        return rows

    @property
    def identity(self) -> bytes:
        """Return path, size, time of change and position; see RowSource."""
        file = self.file
        return f"{file.path.resolve()} {file.n_bytes} {file.modified_ns} {self.offset}".encode(errors="replace")

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the one file; see RowSource."""
        return (self.file,)


@dataclass(frozen=True)
class ArrayRows:
    """Rows made in memory, for small tensors that a converter computes.

    load: returns the whole tensor, (n_rows, row_bytes) uint8; called once.
    """

    load: Callable[[], ByteRows]

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop; see RowSource."""
        return self._rows[start:stop]

    @property
    def identity(self) -> bytes:
        """Return the rows themselves, which are small; see RowSource."""
        return self._rows.tobytes()

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return no file; see RowSource."""
        return ()

    @cached_property
    def _rows(self) -> ByteRows:
        return self.load()


@dataclass(frozen=True)
class Tensor:
    """A named tensor.

    name: GGUF name. shape: numpy order, (n_cols,) or (n_rows, n_cols) or (n_matrices, n_rows, n_cols);
    GGUF's `ne` is its reverse. type: how `source` stores it.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    source: RowSource

    @property
    def n_cols(self) -> int:
        """Weights in a row, the input features of a matrix."""
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Rows of all matrices together."""
        return prod(self.shape[:-1])

    @property
    def n_matrices(self) -> int:
        """Matrices stacked in the tensor: the experts of a MoE tensor, else 1 (also for kernels of convolutions)."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def n_weights(self) -> int:
        """Weights in the whole tensor."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor as stored in its source."""
        return self.n_rows * row_bytes(self.type, self.n_cols)


@dataclass(frozen=True)
class Model:
    """Metadata and tensors in file order.

    path: what it was read from, for messages and provenance. shard_sizes: how many of the tensors each file of a
    split GGUF holds, in order; empty for a model that is not split.
    """

    path: Path
    metadata: Metadata
    tensors: Sequence[Tensor]
    shard_sizes: tuple[int, ...] = ()

    @property
    def n_weights(self) -> int:
        """Weights in all tensors."""
        return sum(tensor.n_weights for tensor in self.tensors)
