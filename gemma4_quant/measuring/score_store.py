"""Scores of all positions while they are computed, and in a file, so that an interrupted run can go on.

The file: 8 bytes of magic, 32 bytes of key, then float64 of shape (n_models, 4, n_positions), little-endian, NaN
where nothing was computed yet. The key says what was to be computed; a file of another key or size is begun anew.
"""

import contextlib
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from gemma4_quant.measuring.position_scores import PositionScores

logger = logging.getLogger(__name__)

_MAGIC = b"G4QSCOR1"
_COLUMNS = 4
_BYTES = np.dtype("<f8").itemsize


class ScoreStore:
    """Scores of several models at the same positions; a context manager."""

    def __init__(self, n_models: int, n_positions: int, path: Path | None = None, *, key: bytes = b"") -> None:
        """Begin, or go on with what a file holds.

        path: where scores are kept; None for memory alone. key: 32 bytes. When the file cannot be written, a warning
        says so and the scores are in memory alone.
        """
        self._values: npt.NDArray[np.float64] = np.full((n_models, _COLUMNS, n_positions), np.nan, "<f8")
        self._header = _MAGIC + key.ljust(32, b"\0")[:32]
        self.path = path
        self._file: BinaryIO | None = None
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                logger.warning("cannot keep results in %s (%s): an interrupted run begins anew", path, error.strerror)
                self.close()

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not following links, and for the user alone: the folder of caches may be anybody's.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0)
        n_bytes = len(self._header) + self._values.nbytes
        if os.fstat(self._file.fileno()).st_size == n_bytes and self._file.read(len(self._header)) == self._header:
            data = self._file.read(self._values.nbytes)
            if len(data) == self._values.nbytes:
                self._values[:] = np.frombuffer(data, "<f8").reshape(self._values.shape)
                return
        self._file.seek(0)
        self._file.truncate(0)
        self._file.write(self._header)
        self._file.write(self._values.tobytes())

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file, which stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Delete the file: the scores have been reported."""
        self.close()
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def has(self, model: int, span: slice) -> bool:
        """Tell whether a model's scores at positions `span` are there."""
        return bool(np.isfinite(self._values[model, 0, span]).all())

    def put(self, model: int, start: int, scores: PositionScores) -> None:
        """Keep a model's scores at positions from `start` on."""
        columns = (scores.nll, scores.reference_nll, scores.divergence, scores.same_top)
        for column, values in enumerate(columns):
            if values is None:
                continue
            self._values[model, column, start : start + len(values)] = values
        if self._file is not None:
            try:
                self._write(model, start, len(scores.nll))
            except OSError as error:
                logger.warning("cannot keep results in %s (%s)", self.path, error.strerror)
                self.close()

    def _write(self, model: int, start: int, n: int) -> None:
        file = self._file
        if file is None:
            return
        # Likelihoods last: they tell that the rest is there too.
        for column in reversed(range(_COLUMNS)):
            index = (model * _COLUMNS + column) * self._values.shape[2] + start
            file.seek(len(self._header) + _BYTES * index)
            file.write(self._values[model, column, start : start + n].tobytes())

    def scores(self, model: int) -> PositionScores | None:
        """Return a model's scores at all positions; None when some are missing."""
        nll, reference_nll, divergence, same_top = (np.ascontiguousarray(row) for row in self._values[model])
        if not np.isfinite(nll).all():
            return None
        if not np.isfinite(divergence).all():
            return PositionScores(nll)
        return PositionScores(nll, reference_nll, divergence, same_top > 0)
