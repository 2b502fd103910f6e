"""What a calibration leaves behind while it runs, so that one that was killed goes on instead of starting again.

`NAME.resume` stands beside the output: an importance file of all batches that have ended, with their sums in full, a
digest of what is being calibrated, and how many chunks are done. A run with the same model, text and options takes it
up; sums and counts become what they would have been without the interruption.
"""

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma4_quant.calibration.importance import Entry, Importance, read_importance, write_importance
from gemma4_quant.errors import Gemma4QuantError, OutputError, naming
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.metadata import get_int, get_string, string, uint32

logger = logging.getLogger(__name__)

_DIGEST = "gemma4_quant.calibration.digest"
_CHUNKS_DONE = "gemma4_quant.calibration.chunks_done"

SAVE_INTERVAL_S = 30.0
"""Most work that a kill can cost; writing the sums of the largest model takes about a second."""


@dataclass(frozen=True)
class Progressed:
    """How far an earlier run came: its statistics, and how many chunks are in them."""

    entries: Mapping[str, Entry]
    n_chunks: int


def resume_file_of(output: Path) -> Path:
    """Return where the state of an unfinished calibration to `output` is kept."""
    return output.with_name(output.name + ".resume")


class ResumeFile:
    """The state of one calibration on disk."""

    def __init__(self, output: Path, digest: str) -> None:
        """Look for nothing yet; digest: changes with model, text and options."""
        self._path = resume_file_of(output)
        self._digest = digest
        self._saved_at = time.monotonic()
        self._n_saved = 0
        self._may_fail = True

    def load(self) -> Progressed | None:
        """Return how far an earlier run of the same calibration came; None without one.

        A state that is damaged or of another calibration is left out with a warning, and overwritten in time.
        """
        if not self._path.exists():
            return None
        try:
            metadata = read_gguf(self._path).metadata
            with naming(self._path):
                digest, n_chunks = get_string(metadata, _DIGEST), get_int(metadata, _CHUNKS_DONE)
            if digest != self._digest:
                logger.warning("%s is of another model, text or options, and is of no use here", self._path)
                return None
            entries = read_importance(self._path).entries
        except Gemma4QuantError as error:
            logger.warning("an interrupted calibration cannot be taken up: %s", error)
            return None
        self._n_saved = n_chunks
        return Progressed(entries, n_chunks)

    def is_due(self) -> bool:
        """Tell whether so much time has passed since the last save that the next is due."""
        return time.monotonic() - self._saved_at >= SAVE_INTERVAL_S

    def save(self, entries: Mapping[str, Entry], n_chunks: int) -> None:
        """Save the statistics of so many chunks; does nothing when they are saved already.

        A full disk need not end the run, which may fit when it is done: it is a warning, once.
        """
        if n_chunks == self._n_saved:
            return
        notes = {_DIGEST: string(self._digest), _CHUNKS_DONE: uint32(n_chunks)}
        self._saved_at = time.monotonic()
        try:
            write_importance(self._path, Importance(entries, (), 0, 0), notes)
        except OutputError as error:
            if self._may_fail:
                logger.warning("%s; a calibration that is interrupted now cannot go on where it was", error)
            self._may_fail = False
        else:
            self._n_saved = n_chunks

    def tell(self) -> None:
        """Tell the user that there is something to go on with, if there is."""
        if self._n_saved:
            logger.warning("%d chunks are kept in %s; the same command goes on from there", self._n_saved, self._path)

    def remove(self) -> None:
        """Delete the state of a calibration that is done."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
