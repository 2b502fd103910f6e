"""Second moments E[x xᵀ] of what enters each weight: the file that `calibrate --hessian` makes, and its reader.

A GGUF file with `general.type` = `moments`. Weights that are multiplied with the same input (q, k and v; gate and up)
share one entry: `moments.names` lists all weights, `moments.entries` the entry of each. An entry NAME has

- `NAME.moments`, F32 (n_matrices, n): sums of x xᵀ, of which the lower triangles of the blocks on the diagonal are
  stored, row by row, one block after the other. There is one block, the full matrix, or there are blocks of 256
  columns, the last of them narrower where columns are left; n tells which.
- `NAME.in_sum2`, F32 (n_matrices, n_in): the diagonal, under the name that llama.cpp's importance files use.
- `NAME.counts`, I64 (n_matrices,): vectors summed.
- `NAME.held_out`, BF16 (n_matrices, n_slots, n_in): vectors of chunks kept out of the sums, drawn at random. Their
  errors show whether what was fitted to the sums holds on other text, at a small part of the bytes of a second
  matrix, and for all columns together where only blocks are stored.
- `NAME.held_keys`, I64 (n_matrices, n_slots): the number drawn for each of them, −1 for an empty slot. Merging keeps
  the vectors with the lowest numbers, so that the parts of a text give what the whole text gives.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemma4_quant.arrays import Float32Row, Float32Rows
from gemma4_quant.calibration.importance import Entry, Importance
from gemma4_quant.calibration.output_matrix import with_lookups
from gemma4_quant.calibration.packed_symmetric import packed_size, unpacked
from gemma4_quant.codecs import codec_for
from gemma4_quant.errors import GgufError, InputError, MomentsError, listed, naming
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import GgmlType
from gemma4_quant.metadata import Metadata, ValueType, get_int, get_string
from gemma4_quant.model import FileRows, Model, Tensor

KIND = "moments"
VERSION = 1

NARROW_BLOCK = 256
"""Width of a block where not the full matrix is stored: the super-block of K types (QK_K in ggml-common.h)."""

_MAX_WIDTH = 1 << 16  # the widest input of a released model has 21,504 columns
_MAX_CHUNKS = 1 << 32


@dataclass(frozen=True)
class Parts:
    """The tensors of an entry, in file order; a row has the values of a matrix, or a held-out vector."""

    sums: Tensor
    diagonal: Tensor
    counts: Tensor
    held_out: Tensor
    held_keys: Tensor


SUFFIXES = {
    "sums": (".moments", GgmlType.F32),
    "diagonal": (".in_sum2", GgmlType.F32),
    "counts": (".counts", GgmlType.I64),
    "held_out": (".held_out", GgmlType.BF16),
    "held_keys": (".held_keys", GgmlType.I64),
}
"""Ending of the name, and type, of each of an entry's Parts."""


def block_width_of(n_in: int, *, full: bool) -> int:
    """Return the width of the blocks that are stored of a matrix of n_in columns."""
    return n_in if full else min(n_in, NARROW_BLOCK)


def block_widths(n_in: int, block_width: int) -> tuple[int, ...]:
    """Return the width of each block on the diagonal."""
    return tuple(min(block_width, n_in - start) for start in range(0, n_in, block_width))


def packed_length(n_in: int, block_width: int) -> int:
    """Return how many numbers are stored of a matrix."""
    return sum(map(packed_size, block_widths(n_in, block_width)))


@dataclass(frozen=True)
class Moments:
    """Second moments of one weight's input, read when they are asked for.

    name: of the weight. entry: of the weight that the numbers are stored for. n_in: input columns. n_matrices:
    experts of a stacked weight, else 1. counts: (n_matrices,) int64, vectors that were summed. block_width: n_in
    where the full matrix is stored, else 256.
    """

    name: str
    entry: str
    n_in: int
    n_matrices: int
    counts: npt.NDArray[np.int64]
    block_width: int
    parts: Parts

    @property
    def n_blocks(self) -> int:
        """Blocks on the diagonal; 1 for a full matrix."""
        return -(-self.n_in // self.block_width)

    @property
    def n_slots(self) -> int:
        """Most held-out vectors of a matrix."""
        return self.parts.held_keys.n_cols

    @property
    def identity(self) -> bytes:
        """Return bytes that change whenever the numbers do, cheap to make; see RowSource."""
        return f"{self.entry} {self.block_width} ".encode() + self.parts.sums.source.identity

    def block(self, matrix: int, index: int) -> npt.NDArray[np.float32]:
        """Return a block of E[x xᵀ], (width, width) float32, symmetric; the last one may be narrower.

        Zeros where nothing was counted. Raises MomentsError when the file holds what no calibration gives.
        """
        widths = block_widths(self.n_in, self.block_width)
        start = sum(map(packed_size, widths[:index]))
        rows = self.parts.sums.source
        assert isinstance(rows, FileRows)
        raw = rows.file.read(rows.offset + matrix * rows.row_bytes + 4 * start, 4 * packed_size(widths[index]))
        packed = np.frombuffer(raw, "<f4")
        ends = np.cumsum(np.arange(1, widths[index] + 1)) - 1  # of the rows: the diagonal
        self._check(packed[ends], packed)
        block = unpacked(packed, widths[index])
        block /= np.float32(max(1, self.counts[matrix]))
        return block

    def mean_square(self, matrix: int) -> Float32Row:
        """Return E[x²] of each column, (n_in,) float32; zeros where nothing was counted."""
        return self.sums_of_squares(matrix) / np.float32(max(1, self.counts[matrix]))

    def sums_of_squares(self, matrix: int) -> Float32Row:
        """Return the sums of x² of each column, (n_in,) float32."""
        values: Float32Row = self.parts.diagonal.source.read_rows(matrix, matrix + 1).view("<f4")[0]
        self._check(values, values)
        return values

    def held_out(self, matrix: int) -> Float32Rows:
        """Return vectors that are not in the sums, (n_vectors, n_in) float32; none when the text was short."""
        keys, bits = self.held_out_bits(matrix)
        vectors = codec_for(GgmlType.BF16).decode(bits[keys >= 0].view(np.uint8), self.n_in)
        if not np.isfinite(vectors).all():
            raise self._damaged("held-out vectors that are NaN or infinite")
        return vectors

    def held_out_bits(self, matrix: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
        """Return the held-out slots as stored: keys (n_slots,) int64 and vectors (n_slots, n_in) bfloat16 bits."""
        keys = self.parts.held_keys.source.read_rows(matrix, matrix + 1).view("<i8")[0]
        rows = self.parts.held_out.source.read_rows(matrix * self.n_slots, (matrix + 1) * self.n_slots)
        return keys, rows.view("<u2")

    def packed(self, matrix: int) -> npt.NDArray[np.float32]:
        """Return the sums of a matrix as stored, (packed_length,) float32."""
        packed: npt.NDArray[np.float32] = self.parts.sums.source.read_rows(matrix, matrix + 1).view("<f4")[0]
        return packed

    def _check(self, diagonal: npt.NDArray[np.float32], values: npt.NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise self._damaged("values that are NaN or infinite")
        if (diagonal < 0).any():
            raise self._damaged("negative sums of squares")

    def _damaged(self, what: str) -> MomentsError:
        return MomentsError(f"{self.parts.sums.source.files[0].path} holds {what} for {self.entry}; calibrate again")


@dataclass(frozen=True)
class Provenance:
    """What second moments were made from.

    model: general.name of the model. datasets: the texts. chunk_count: chunks of chunk_size tokens, of which
    held_out_chunks are in no sum.
    """

    model: str
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    held_out_chunks: int

    @property
    def n_summed_tokens(self) -> int:
        """Tokens that are in the sums."""
        return (self.chunk_count - self.held_out_chunks) * self.chunk_size


@dataclass(frozen=True)
class MomentsFile(Mapping[str, Moments]):
    """A file of second moments: a mapping from names of weights."""

    path: Path
    provenance: Provenance
    moments: Mapping[str, Moments]

    def __getitem__(self, name: str) -> Moments:
        """Return the moments of a weight's input."""
        return self.moments[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of weights."""
        return iter(self.moments)

    def __len__(self) -> int:
        """Return the number of weights."""
        return len(self.moments)

    def importance(self) -> Importance:
        """Return the diagonals as the importance of all weights, of a tied output matrix for both of its uses."""
        entries = {
            name: Entry(
                np.stack([moments.sums_of_squares(matrix) for matrix in range(moments.n_matrices)]),
                moments.counts.astype(np.float32),
            )
            for name, moments in self.moments.items()
        }
        made_from = self.provenance
        n_chunks = made_from.chunk_count - made_from.held_out_chunks
        return Importance(with_lookups(entries), made_from.datasets, n_chunks, made_from.chunk_size)


def is_moments(metadata: Metadata) -> bool:
    """Tell whether a GGUF file says that it holds second moments."""
    kind = metadata.get("general.type")
    return kind is not None and kind.decode() == KIND


def holds_moments(path: Path) -> bool:
    """Tell whether a file is a readable GGUF file of second moments; what else it may be is for others to say."""
    try:
        return is_moments(read_gguf(path).metadata)
    except InputError:
        return False


def read_moments(path: Path) -> MomentsFile:
    """Open a file of second moments; matrices are read when they are asked for.

    Raises MomentsError when it is not one, is incomplete, or its parts do not fit each other.
    """
    try:
        with naming(path):
            model = read_gguf(path)
            if not is_moments(model.metadata):
                raise MomentsError(
                    f"{path} is a GGUF file without second moments; make one with `gemma4-quant calibrate --hessian`"
                )
            if (version := get_int(model.metadata, "moments.version")) != VERSION:
                raise MomentsError(f"{path} has version {version} of the layout, not {VERSION}; calibrate again")
            return MomentsFile(path, _read_provenance(model), _open_all(model))
    except GgufError as error:
        raise MomentsError(f"{error} (a file of second moments was expected)") from error


def _read_provenance(model: Model) -> Provenance:
    numbers = {
        key: get_int(model.metadata, f"moments.{key}") for key in ("chunk_count", "chunk_size", "held_out_chunks")
    }
    bad = [f"moments.{key} = {number}" for key, number in numbers.items() if not 0 <= number < _MAX_CHUNKS]
    if bad or numbers["held_out_chunks"] > numbers["chunk_count"]:
        raise MomentsError(f"{model.path}: impossible counts of chunks ({listed(bad)}); calibrate again")
    name = get_string(model.metadata, "general.name", "")
    return Provenance(name, tuple(_strings(model.metadata, "moments.datasets")), **numbers)


def _strings(metadata: Metadata, key: str) -> list[str]:
    value = metadata.get(key)
    if value is None or value.item is not ValueType.STRING:
        raise GgufError(f"{key} is missing or no list of names")
    return [str(text) for text in value.decode()]


def _open_all(model: Model) -> dict[str, Moments]:
    names, entries = _strings(model.metadata, "moments.names"), _strings(model.metadata, "moments.entries")
    if len(names) != len(entries) or len(set(names)) != len(names) or not set(entries) <= set(names) or not names:
        raise MomentsError(f"{model.path}: moments.names and moments.entries do not fit each other; calibrate again")
    tensors = {tensor.name: tensor for tensor in model.tensors}
    opened = {entry: _open(model.path, entry, tensors) for entry in dict.fromkeys(entries)}
    return {
        name: Moments(name, entry, n_in, n_matrices, counts, width, parts)
        for name, entry in zip(names, entries, strict=True)
        for n_in, n_matrices, counts, width, parts in [opened[entry]]
    }


def _open(
    path: Path, entry: str, tensors: Mapping[str, Tensor]
) -> tuple[int, int, npt.NDArray[np.int64], int, Parts]:
    """Return n_in, n_matrices, counts, block width and tensors of an entry whose shapes fit each other."""
    found = {part: tensors.get(entry + suffix) for part, (suffix, _) in SUFFIXES.items()}
    missing = [entry + SUFFIXES[part][0] for part, tensor in found.items() if tensor is None]
    if missing:
        raise MomentsError(f"{path} lacks {listed(missing)}; calibrate again")
    parts = Parts(**{part: tensor for part, tensor in found.items() if tensor is not None})
    n_in, n_matrices, n_slots = parts.diagonal.n_cols, parts.diagonal.n_rows, parts.held_keys.n_cols
    wrong = [
        tensor.name for part, tensor in found.items() if tensor is not None and tensor.type is not SUFFIXES[part][1]
    ]
    widths = [w for w in (n_in, block_width_of(n_in, full=False)) if packed_length(n_in, w) == parts.sums.n_cols]
    shapes = {
        parts.sums: (n_matrices, parts.sums.n_cols if widths else -1),
        parts.counts: (1, n_matrices),
        parts.held_keys: (n_matrices, n_slots),
        parts.held_out: (n_matrices * n_slots, n_in),
    }
    wrong += [tensor.name for tensor, shape in shapes.items() if (tensor.n_rows, tensor.n_cols) != shape]
    if wrong or n_in > _MAX_WIDTH:
        raise MomentsError(
            f"{path}: {listed(dict.fromkeys(wrong)) or entry} has an impossible shape or type; calibrate again"
        )
    counts = parts.counts.source.read_rows(0, 1).view("<i8")[0]
    if (counts < 0).any():
        raise MomentsError(f"{path}: negative counts for {entry}; calibrate again")
    return n_in, n_matrices, counts, widths[0], parts
