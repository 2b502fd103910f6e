"""The plan of an output: every file, type, offset and byte known before any work starts."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Protocol

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import OutputError
from gemma4_quant.formats.gguf_header import TensorInfo, align, encode_header
from gemma4_quant.formats.shards import MAX_SHARDS, SplitRule, shard_metadata
from gemma4_quant.ggml import ALIGNMENT, GgmlType, row_bytes
from gemma4_quant.metadata import Metadata, get_int
from gemma4_quant.model import Tensor


@dataclass(frozen=True)
class Cost:
    """What encoding a tensor takes: processor seconds, and bytes of memory beside what every thread needs."""

    seconds: float
    memory_bytes: int


class RowEncoder(Protocol):
    """What encodes a tensor's rows in place of its type's codec; safe to use from several threads.

    rows_at_once: it is given whole multiples of so many rows, but for the last ones of a matrix.
    """

    @property
    def rows_at_once(self) -> int:
        """See above; the bytes of a row must not depend on which rows come with it."""
        ...

    def encode(self, rows: Float32Rows, importance: Float32Row | None, effort: Effort, matrix: int = 0) -> ByteRows:
        """Return the bytes of rows of one of the tensor's matrices in the planned type; see Codec.encode."""
        ...

    @property
    def identity(self) -> bytes:
        """Return bytes that change whenever the encoder's output does."""
        ...

    def cost(self, effort: Effort) -> Cost | None:
        """Estimate what encoding the whole tensor takes; None when it is what the codec of the type takes."""
        ...


@dataclass(frozen=True)
class Assignment:
    """A tensor, the type to write it as, its importance, and its encoder; see PlannedTensor."""

    tensor: Tensor
    type: GgmlType
    importance: Float32Rows | None = None
    encoder: RowEncoder | None = None


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor with the type it will be written as.

    importance: (n_matrices, n_cols) float32 mean squared activations, or None for uniform.
    offset: first byte of its data in its file. n_bytes: size of its data there.
    encoder: what encodes its rows, the codec of the type when None.
    """

    tensor: Tensor
    type: GgmlType
    importance: Float32Rows | None
    offset: int
    n_bytes: int
    encoder: RowEncoder | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as written."""
        return row_bytes(self.type, self.tensor.n_cols)


@dataclass(frozen=True)
class PlannedFile:
    """A file before it exists. n_bytes: size of the whole file."""

    header: bytes
    tensors: tuple[PlannedTensor, ...]
    n_bytes: int


@dataclass(frozen=True)
class Plan:
    """An output before it exists: one file, or the shards of a split model in order."""

    files: tuple[PlannedFile, ...]

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """All tensors, in the order of the files."""
        return tuple(planned for file in self.files for planned in file.tensors)

    @property
    def n_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.n_bytes for file in self.files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides the output's bytes, but for the encoders' own version and effort."""
        state = hashlib.sha256()
        for file in self.files:
            state.update(file.header)
            for planned in file.tensors:
                state.update(planned.tensor.source.identity)
                if planned.importance is not None:
                    state.update(planned.importance.tobytes())
                if planned.encoder is not None:
                    state.update(planned.encoder.identity)
        return state.hexdigest()


def make_plan(metadata: Metadata, assignments: Iterable[Assignment], split: SplitRule | None = None) -> Plan:
    """Lay out an output, in shards when `split` makes more than one.

    Raises ShapeError when a type does not fit a tensor's rows, OutputError when there would be too many shards.
    """
    assignments = list(assignments)
    sizes = [a.tensor.n_rows * row_bytes(a.type, a.tensor.n_cols) for a in assignments]
    counts = [len(assignments)] if split is None else split.counts([a.tensor.name for a in assignments], sizes)
    if len(counts) > MAX_SHARDS:
        raise OutputError(f"the limits make {len(counts):,} files, GGUF allows {MAX_SHARDS:,}; choose larger ones")
    ends = accumulate(counts, initial=0)
    return Plan(
        tuple(
            _lay_out(
                shard_metadata(metadata, number, len(counts), len(assignments)),
                assignments[start:stop],
                sizes[start:stop],
            )
            for number, (start, stop) in enumerate(pairwise(ends))
        )
    )


def _lay_out(metadata: Metadata, assignments: Sequence[Assignment], sizes: Sequence[int]) -> PlannedFile:
    alignment = get_int(metadata, "general.alignment", ALIGNMENT)
    infos, at = [], 0
    for assignment, n_bytes in zip(assignments, sizes, strict=True):
        infos.append(TensorInfo(assignment.tensor.name, assignment.tensor.shape, assignment.type, at))
        at += align(n_bytes, alignment)
    header = encode_header(metadata, infos, alignment)
    planned = tuple(
        PlannedTensor(a.tensor, a.type, a.importance, len(header) + info.offset, n_bytes, a.encoder)
        for a, info, n_bytes in zip(assignments, infos, sizes, strict=True)
    )
    return PlannedFile(header, planned, len(header) + at)
