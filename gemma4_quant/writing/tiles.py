"""The unit of work: rows of a tensor, read once, decoded once, and written in every type that is wanted of them."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.lanes import LANES
from gemma4_quant.errors import Gemma4QuantError, NonFiniteError, ShapeError
from gemma4_quant.ggml import block_size
from gemma4_quant.model import FileRows, Tensor
from gemma4_quant.writing.finite import first_not_finite
from gemma4_quant.writing.plan import PlannedTensor

TILE_WEIGHTS = 1 << 20
"""Weights in a tile: 4 MB as float32, so that a tile and its output stay near the caches."""

MAX_COLUMNS = 1 << 24
"""Longest row that is encoded, 64 MB as float32; the widest of a released model has 21,504 weights."""

_PIECE_BYTES = 1 << 19
"""Bytes copied at once: checked for NaN between reading and writing, while they are in the second-level cache."""


@dataclass(frozen=True)
class Tile:
    """Rows start..stop of one matrix of a tensor."""

    tensor: Tensor
    matrix: int
    start: int
    stop: int


@dataclass(frozen=True)
class Destination:
    """Where a tensor goes. write: takes an offset in the file and the bytes from there on; safe from any thread."""

    planned: PlannedTensor
    write: Callable[[int, memoryview], None]


def tiles_of(tensor: Tensor, rows_at_once: int = 1) -> Iterator[Tile]:
    """Cut a tensor into tiles that never cross from one matrix (expert) into the next.

    Codecs work on LANES rows at once; tiles of whole multiples waste none. rows_at_once: of encoders that want whole
    multiples even where the tile becomes larger for it.
    """
    rows_per_matrix = tensor.n_rows // tensor.n_matrices
    step = max(rows_at_once, TILE_WEIGHTS // tensor.n_cols)
    multiple = max(rows_at_once, LANES)
    if step > multiple:
        step -= step % multiple
    for matrix in range(tensor.n_matrices):
        end = (matrix + 1) * rows_per_matrix
        for start in range(matrix * rows_per_matrix, end, step):
            yield Tile(tensor, matrix, start, min(start + step, end))


def write_tile(tile: Tile, destinations: Sequence[Destination], effort: Effort) -> int:
    """Write a tile to all destinations, whose tensors are the tile's; return the bytes written.

    Raises NonFiniteError, ShapeError and InputError naming the tensor, and what the destinations raise.
    """
    copied = [each for each in destinations if each.planned.type is tile.tensor.type and not each.planned.encoder]
    encoded = [each for each in destinations if each not in copied]
    try:
        n_bytes = _copy(tile, copied) if copied and not encoded else 0
        return n_bytes or _encode(tile, copied, encoded, effort)
    except Gemma4QuantError as error:
        where = f"tensor {tile.tensor.name}, rows {tile.start} to {tile.stop - 1}"
        raise type(error)(f"{where}: {error}") from error


def encode_rows(planned: PlannedTensor, matrix: int, rows: Float32Rows, effort: Effort) -> ByteRows:
    """Return rows of one matrix of a tensor in the planned type, (n_rows, row_bytes) uint8."""
    importance = None if planned.importance is None else planned.importance[matrix]
    if planned.encoder is not None:
        return planned.encoder.encode(rows, importance, effort, matrix)
    return codec_for(planned.type).encode(rows, importance, effort)


def _encode(tile: Tile, copied: Sequence[Destination], encoded: Sequence[Destination], effort: Effort) -> int:
    tensor, n_bytes = tile.tensor, 0
    if tensor.n_cols > MAX_COLUMNS:
        raise ShapeError(f"it has {tensor.n_cols:,} columns, at most {MAX_COLUMNS:,} can be encoded")
    stored = tensor.source.read_rows(tile.start, tile.stop)
    if copied:
        _check_finite(stored, tensor, tile.start * tensor.n_cols)
    for destination in copied:
        n_bytes += _write_rows(destination, tile, stored)
    rows = codec_for(tensor.type).decode(stored, tensor.n_cols) if encoded else None
    for destination in encoded:
        assert rows is not None
        n_bytes += _write_rows(destination, tile, encode_rows(destination.planned, tile.matrix, rows, effort))
    return n_bytes


def _write_rows(destination: Destination, tile: Tile, data: ByteRows) -> int:
    planned = destination.planned
    destination.write(planned.offset + tile.start * planned.row_bytes, data.data.cast("B"))
    return data.nbytes


class _Buffers(threading.local):
    """A buffer for each thread that is used for piece after piece: new memory costs as much as the copy."""

    def __init__(self) -> None:
        self.piece = np.empty(_PIECE_BYTES, np.uint8)


_buffers = _Buffers()


def _copy(tile: Tile, destinations: Sequence[Destination]) -> int:
    """Copy rows that stay as they are from file to file, however long; return 0 when the source is no file."""
    source, size = tile.tensor.source, block_size(tile.tensor.type)
    if not isinstance(source, FileRows):
        return 0
    first, end = tile.start * source.row_bytes, tile.stop * source.row_bytes
    step = _PIECE_BYTES - _PIECE_BYTES % size.n_bytes
    for at in range(first, end, step):
        piece = _buffers.piece[: min(step, end - at)]
        source.file.read_into(source.offset + at, piece.data)
        _check_finite(piece, tile.tensor, at // size.n_bytes * size.n_weights)
        for destination in destinations:
            destination.write(destination.planned.offset + at, piece.data)
    return (end - first) * len(destinations)


def _check_finite(stored: ByteRows, tensor: Tensor, first_weight: int) -> None:
    index = first_not_finite(stored, tensor.type)
    if index is not None:
        row, column = divmod(first_weight + index, tensor.n_cols)
        raise NonFiniteError(
            f"the weight in row {row}, column {column}, is NaN or infinite; the checkpoint is damaged"
        )
