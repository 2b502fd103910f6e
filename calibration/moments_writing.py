"""Writing files of second moments: in place, an entry when it is done, so that a run that is killed goes on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from gemma4_quant.calibration.moment_sums import MatrixMoments
from gemma4_quant.calibration.moments import KIND, SUFFIXES, VERSION, Provenance, packed_length
from gemma4_quant.errors import MomentsError, listed
from gemma4_quant.metadata import Metadata, string, strings, uint32
from gemma4_quant.model import ArrayRows, Tensor
from gemma4_quant.writing.destination import cannot_write, check_destination
from gemma4_quant.writing.output import Output
from gemma4_quant.writing.partial_file import PartialFile
from gemma4_quant.writing.plan import Assignment, Plan, PlannedTensor, make_plan
from gemma4_quant.writing.writer import Job, check_space

_MAX_NAME_BYTES = 63  # GGML_MAX_NAME without its final zero


@dataclass(frozen=True)
class EntryLayout:
    """An entry before its numbers are known.

    names: the weights that share it; it bears the first one's name. n_in, n_matrices, block_width, n_slots: see
    Moments.
    """

    names: tuple[str, ...]
    n_in: int
    n_matrices: int
    block_width: int
    n_slots: int

    @property
    def name(self) -> str:
        """Name of the weight that the numbers are stored for."""
        return self.names[0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each of its tensors, by the part they are; see Parts."""
        n_matrices, n_slots, n_in = self.n_matrices, self.n_slots, self.n_in
        return {
            "sums": (n_matrices, packed_length(n_in, self.block_width)),
            "diagonal": (n_matrices, n_in),
            "counts": (n_matrices,),
            "held_out": (n_matrices, n_slots, n_in),
            "held_keys": (n_matrices, n_slots),
        }


class MomentsWriter:
    """A file of second moments on its way to the disk; a context manager.

    It appears whole or not at all. Entries that were committed stay in `NAME.partial` when the run ends early, and
    are not asked for again by a run with the same digest.
    """

    def __init__(
        self,
        path: Path,
        entries: Sequence[EntryLayout],
        provenance: Provenance,
        digest: str,
        inputs: Iterable[Path] = (),
    ) -> None:
        """Lay out and reserve the file.

        digest: says what the numbers are made from. inputs: files that must not be overwritten. Raises OutputError
        when it cannot be written, MomentsError when the name of a weight is too long for a GGUF file.
        """
        too_long = [e.name for e in entries if len(f"{e.name}{SUFFIXES['held_keys'][0]}".encode()) > _MAX_NAME_BYTES]
        if too_long:
            raise MomentsError(f"the names of {listed(too_long)} are too long for a file of second moments")
        check_destination(path, inputs)
        self._path = path
        self._entries = tuple(entries)
        plan = _plan(entries, provenance)
        check_space([Job(plan, path)])
        try:
            self._output = Output(plan, path, digest, durable=True)
            self._output.begin()
        except OSError as error:
            raise cannot_write(path, error) from error
        self._places: dict[str, tuple[PlannedTensor, PartialFile]] = {
            planned.tensor.name: (planned, file) for planned, file in self._output.remaining()
        }

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Give the finished file its name; after an error keep what was committed."""
        if kind is not None:
            self._output.give_up(keep_done=True)
        else:
            self._publish()
        if isinstance(error, OSError):
            raise cannot_write(self._path, error) from error

    def _publish(self) -> None:
        try:
            self._output.finish()
            self._output.publish()
            self._output.forget()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def remaining(self) -> tuple[EntryLayout, ...]:
        """Return the entries that no earlier run has committed."""
        return tuple(entry for entry in self._entries if _tensor_name(entry, "held_keys") in self._places)

    def write(self, entry: EntryLayout, matrix: int, numbers: MatrixMoments) -> None:
        """Write the numbers of one matrix of an entry; raises OSError."""
        values = {
            "sums": numbers.sums.astype("<f4", copy=False),
            "diagonal": numbers.diagonal.astype("<f4", copy=False),
            "counts": np.array([numbers.count], "<i8"),
            "held_out": numbers.held_out.astype("<u2", copy=False),
            "held_keys": numbers.keys.astype("<i8", copy=False),
        }
        for part, array in values.items():
            planned, file = self._places[_tensor_name(entry, part)]
            file.write(planned.offset + matrix * array.nbytes, np.ascontiguousarray(array).data.cast("B"))

    def commit(self, entries: Iterable[EntryLayout]) -> None:
        """Note entries whose matrices are all written as done; raises OSError."""
        self._output.commit(_tensor_name(entry, part) for entry in entries for part in SUFFIXES)


def _tensor_name(entry: EntryLayout, part: str) -> str:
    return entry.name + SUFFIXES[part][0]


def _plan(entries: Sequence[EntryLayout], provenance: Provenance) -> Plan:
    nothing = ArrayRows(lambda: np.empty((0, 0), np.uint8))  # numbers are written as they come
    assignments = [
        Assignment(Tensor(entry.name + suffix, entry.shapes[part], kind, nothing), kind)
        for entry in entries
        for part, (suffix, kind) in SUFFIXES.items()
    ]
    return make_plan(_metadata(entries, provenance), assignments)


def _metadata(entries: Sequence[EntryLayout], provenance: Provenance) -> Metadata:
    shared = [(name, entry.name) for entry in entries for name in entry.names]
    return {
        "general.type": string(KIND),
        "general.name": string(provenance.model),
        "moments.version": uint32(VERSION),
        "moments.datasets": strings(list(provenance.datasets)),
        "moments.chunk_count": uint32(provenance.chunk_count),
        "moments.chunk_size": uint32(provenance.chunk_size),
        "moments.held_out_chunks": uint32(provenance.held_out_chunks),
        "moments.names": strings([name for name, _ in shared]),
        "moments.entries": strings([entry for _, entry in shared]),
    }
