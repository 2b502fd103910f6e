"""The plan of an output file: every type, offset and byte known before any work starts."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.codecs.lanes import LANES
from gemma4_quant.ggml import GgmlType, row_bytes
from gemma4_quant.gguf_header import TensorInfo, align, encode_header
from gemma4_quant.metadata import Metadata
from gemma4_quant.model import Tensor

TILE_WEIGHTS = 1 << 20
"""Weights in a tile: 4 MB as float32, so that a tile and its output stay near the caches."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor with the type it will be written as.

    importance: (n_matrices, n_cols) float32 mean squared activations, or None for uniform.
    offset: first byte of its data in the output file. n_bytes: size of its data there.
    """

    tensor: Tensor
    type: GgmlType
    importance: Float32Rows | None
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Tile:
    """Rows start..stop of one matrix of a planned tensor; the unit of work."""

    planned: PlannedTensor
    matrix: int
    start: int
    stop: int

    @property
    def offset(self) -> int:
        """First byte of the tile in the output file."""
        return self.planned.offset + self.start * row_bytes(self.planned.type, self.planned.tensor.n_cols)


@dataclass(frozen=True)
class Plan:
    """An output file before it exists. n_bytes: size of the whole file."""

    header: bytes
    tensors: tuple[PlannedTensor, ...]
    n_bytes: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides the output's bytes, but for the encoders' own version and effort."""
        state = hashlib.sha256(self.header)
        for planned in self.tensors:
            state.update(planned.tensor.source.identity)
            if planned.importance is not None:
                state.update(planned.importance.tobytes())
        return state.hexdigest()


@dataclass(frozen=True)
class Assignment:
    """A tensor, the type to write it as, and its importance; what a recipe decided."""

    tensor: Tensor
    type: GgmlType
    importance: Float32Rows | None = None


def make_plan(metadata: Metadata, assignments: Iterable[Assignment]) -> Plan:
    """Lay out a file; raises ShapeError when a type does not fit a tensor's rows."""
    assignments = list(assignments)
    sizes = [a.tensor.n_rows * row_bytes(a.type, a.tensor.n_cols) for a in assignments]
    infos, at = [], 0
    for assignment, n_bytes in zip(assignments, sizes, strict=True):
        infos.append(TensorInfo(assignment.tensor.name, assignment.tensor.shape, assignment.type, at))
        at += align(n_bytes)
    header = encode_header(metadata, infos)
    planned = tuple(
        PlannedTensor(a.tensor, a.type, a.importance, len(header) + info.offset, n_bytes)
        for a, info, n_bytes in zip(assignments, infos, sizes, strict=True)
    )
    return Plan(header, planned, len(header) + at)


def tiles_of(planned: PlannedTensor) -> Iterator[Tile]:
    """Cut a tensor into tiles that never cross from one matrix (expert) into the next.

    Encoders work on LANES rows at once; tiles of whole multiples waste none.
    """
    tensor = planned.tensor
    rows_per_matrix = tensor.n_rows // tensor.n_matrices
    step = max(LANES, TILE_WEIGHTS // tensor.n_cols // LANES * LANES)
    for matrix in range(tensor.n_matrices):
        end = (matrix + 1) * rows_per_matrix
        for start in range(matrix * rows_per_matrix, end, step):
            yield Tile(planned, matrix, start, min(start + step, end))
