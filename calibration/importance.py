"""Importance files: how strongly each input column of each weight is used, in llama.cpp's GGUF layout.

For every weight two tensors: `NAME.in_sum2`, sums of squared activations, and `NAME.counts`, how many activations
were summed (tools/imatrix/imatrix.cpp, save_imatrix; common/imatrix-loader.cpp). Where float32 does not hold the
sums, a third, `NAME.in_sum2_f64`, has them in full, so that parts of a calibration add up exactly; llama.cpp's loader
passes over it. llama.cpp's older `.dat` files are read as well (legacy_dat).
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.errors import GgufError, ImportanceError, listed
from gemma4_quant.formats.gguf_header import TensorInfo, align, encode_header
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import GgmlType
from gemma4_quant.metadata import Metadata, get_int, string, strings, uint32
from gemma4_quant.model import Model, Tensor
from gemma4_quant.writing.destination import cannot_write, partial_of

_SUMS = ".in_sum2"
_COUNTS = ".counts"
_FULL_SUMS = ".in_sum2_f64"
_FEWEST_TOKENS = 8
"""Estimates from fewer activations were worse than none: see docs/measurements.md, tokens that an expert needs."""

_MAX_NAME_BYTES = 63  # GGML_MAX_NAME without its final zero


Floats = npt.NDArray[np.floating[Any]]
"""float32, as files of llama.cpp have them, or float64."""


@dataclass(frozen=True)
class Entry:
    """Statistics of one weight.

    sums: (n_matrices, n_in), sums of squared activations. counts: (n_matrices,), activations summed.
    """

    sums: Floats
    counts: Floats

    def of_matrices(self, n_matrices: int) -> "Entry":
        """Return the statistics matrix by matrix, where a file has one count for all (see `legacy_dat`).

        An expert that saw nothing stands there with 1 for every column, which no activation gives: it is unseen.
        Returns the entry itself where nothing is to be parted.
        """
        n_columns = self.sums.size // n_matrices
        if len(self.counts) != 1 or n_matrices == 1 or self.sums.size != n_matrices * n_columns:
            return self
        sums = self.sums.reshape(n_matrices, n_columns)
        unseen = (sums == self.counts[0]).all(axis=1)
        return Entry(np.where(unseen[:, None], 0, sums), np.where(unseen, 0, self.counts[0]))


@dataclass(frozen=True)
class Importance:
    """Statistics of a calibration, by the GGUF name of the weight.

    datasets: the texts it was made from. chunk_count, chunk_size: how many chunks of how many tokens.
    """

    entries: Mapping[str, Entry]
    datasets: Sequence[str]
    chunk_count: int
    chunk_size: int

    @property
    def names(self) -> frozenset[str]:
        """Names of the weights that have statistics."""
        return frozenset(self.entries)

    @property
    def counts(self) -> dict[str, Floats]:
        """How many activations of each matrix were summed, by the weight's name."""
        return {name: entry.counts for name, entry in self.entries.items()}

    def mean_square(self, name: str) -> Float32Rows:
        """Return the mean squared activation of each input column, (n_matrices, n_in) float32.

        A matrix that saw next to nothing (see `lent`) gets the mean over the matrices that saw more: an expert that
        was hardly ever routed to is treated like an average one, where llama.cpp would take 1 for every column of one
        that never was. Raises ImportanceError when there is no such weight, or when none of its matrices saw
        anything.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise ImportanceError(f"the importance file says nothing of {name}")
        if not entry.counts.any():
            raise ImportanceError(f"no activation of {name} was counted; calibrate with more text")
        own = ~_is_lent(entry.counts)
        means = np.zeros(entry.sums.shape, np.float64)
        np.divide(entry.sums, entry.counts[:, None], out=means, where=own[:, None])
        means[~own] = means[own].mean(axis=0)
        return means.astype(np.float32)

    def unseen(self, name: str) -> tuple[int, ...]:
        """Return the matrices of a weight that saw no activation: experts that were never routed to."""
        return tuple(int(i) for i in np.flatnonzero(self.entries[name].counts == 0))

    def lent(self, name: str) -> tuple[int, ...]:
        """Return the matrices of a weight whose importance is the mean of the others, since they saw too little."""
        return tuple(int(i) for i in np.flatnonzero(_is_lent(self.entries[name].counts)))

    def of_matrices(self, n_matrices: Mapping[str, int]) -> "Importance":
        """Return the statistics with those of stacked weights matrix by matrix; see Entry.of_matrices.

        n_matrices: of the weights of a model, by name.
        """
        entries = {name: entry.of_matrices(n_matrices.get(name, 1)) for name, entry in self.entries.items()}
        return replace(self, entries=entries)


def _is_lent(counts: Floats) -> npt.NDArray[np.bool_]:
    """Tell which matrices saw too few activations, (n_matrices,) bool; where all did, those that saw none."""
    few: npt.NDArray[np.bool_] = counts < _FEWEST_TOKENS
    return counts == 0 if few.all() else few


def read_importance(path: Path) -> Importance:
    """Read an importance file made by `calibrate` or llama-imatrix, in GGUF or in llama.cpp's older format.

    Raises ImportanceError when it is not one, is incomplete, or holds values that no calibration gives.
    """
    from gemma4_quant.calibration.legacy_dat import is_legacy, read_legacy

    if is_legacy(path):
        return read_legacy(path)
    try:
        model = read_gguf(path)
        kind = model.metadata.get("general.type")
        if kind is None or kind.decode() != "imatrix":
            raise ImportanceError(
                f"{path} is a GGUF file but not an importance file; make one with `gemma4-quant calibrate`"
            )
        datasets = model.metadata.get("imatrix.datasets")
        return Importance(
            entries=_read_entries(model),
            datasets=tuple(map(str, datasets.decode())) if datasets is not None and datasets.count else (),
            chunk_count=_count(model, "imatrix.chunk_count"),
            chunk_size=_count(model, "imatrix.chunk_size"),
        )
    except GgufError as error:
        raise ImportanceError(f"{error} (an importance file in GGUF format was expected)") from error


def _count(model: Model, key: str) -> int:
    try:
        number = get_int(model.metadata, key, 0)
    except GgufError as error:
        raise ImportanceError(f"{model.path}: {error}; calibrate again") from error
    if not 0 <= number < 1 << 32:
        raise ImportanceError(f"{model.path}: {key} is {number}, not a count; calibrate again")
    return number


def _read_entries(model: Model) -> dict[str, Entry]:
    tensors = {tensor.name: tensor for tensor in model.tensors}
    names = sorted({name.removesuffix(_FULL_SUMS).removesuffix(_SUMS).removesuffix(_COUNTS) for name in tensors})
    incomplete = [name for name in names if name + _SUMS not in tensors or name + _COUNTS not in tensors]
    if incomplete or not names:
        raise ImportanceError(
            f"{model.path} holds no complete statistics for {listed(incomplete) or 'any tensor'}; calibrate again"
        )
    entries = {
        name: _read_entry(model, tensors[name + _SUMS], tensors[name + _COUNTS], tensors.get(name + _FULL_SUMS))
        for name in names
    }
    bad = [name for name, entry in entries.items() if not is_plausible(entry)]
    if bad:
        raise ImportanceError(f"{model.path}: negative, NaN or infinite statistics of {listed(bad)}; calibrate again")
    return entries


def _read_entry(model: Model, sums: Tensor, counts: Tensor, full: Tensor | None) -> Entry:
    if sums.type is not GgmlType.F32 or counts.type is not GgmlType.F32:
        raise ImportanceError(f"{model.path}: {sums.name} and {counts.name} must be F32")
    count = counts.source.read_rows(0, counts.n_rows).view("<f4").reshape(-1)
    values: Floats = sums.source.read_rows(0, sums.n_rows).view("<f4")
    if values.size % count.size:
        raise ImportanceError(
            f"{model.path}: {sums.name} has {values.size} sums for {count.size} matrices; calibrate again"
        )
    if full is not None:
        values = _read_full(model, full, values)
    return Entry(values.reshape(count.size, -1), count)


def _read_full(model: Model, full: Tensor, rounded: Floats) -> Floats:
    """Return sums in full; raises ImportanceError unless they are what `rounded` was rounded from."""
    if full.type is GgmlType.F64 and full.n_weights == rounded.size:
        values: Floats = full.source.read_rows(0, full.n_rows).view("<f8").reshape(rounded.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.array_equal(values.astype(np.float32), rounded, equal_nan=True):
                return values
    raise ImportanceError(f"{model.path}: {full.name} contradicts the sums in float32; calibrate again")


def is_plausible(entry: Entry) -> bool:
    """Tell whether all sums and counts are numbers that a calibration can give."""
    return bool(
        np.isfinite(entry.sums).all()
        and (entry.sums >= 0).all()
        and np.isfinite(entry.counts).all()
        and (entry.counts >= 0).all()
    )


def refuse_implausible(importance: Importance) -> None:
    """Raise ImportanceError naming weights whose statistics are not finite or negative."""
    bad = [name for name, entry in importance.entries.items() if not is_plausible(entry)]
    if bad:
        raise ImportanceError(
            f"statistics of {listed(bad)} are NaN, infinite or negative: the model's activations overflow"
        )


def write_importance(path: Path, importance: Importance, notes: Metadata | None = None) -> None:
    """Write an importance file as llama-imatrix does: tensors in the order of their names.

    notes: further metadata. The file appears whole or not at all. Raises ImportanceError when a value is not finite
    or negative, OutputError when the file cannot be written.
    """
    refuse_implausible(importance)
    arrays = dict(_arrays(importance))
    too_long = [name for name in arrays if len(name.encode()) > _MAX_NAME_BYTES]
    if too_long:
        raise ImportanceError(f"names longer than {_MAX_NAME_BYTES} bytes do not fit a GGUF file: {listed(too_long)}")
    infos, offset = [], 0
    for name, array in arrays.items():
        kind = GgmlType.F64 if array.dtype == np.float64 else GgmlType.F32
        infos.append(TensorInfo(name, array.shape, kind, offset))
        offset += align(array.nbytes)
    parts = [encode_header({**_metadata(importance), **(notes or {})}, infos)]
    for array in arrays.values():
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        parts += [data, bytes(align(len(data)) - len(data))]
    replace_file(path, parts)


def _arrays(importance: Importance) -> list[tuple[str, Floats]]:
    """Return tensors in file order; ggml drops outer dimensions of 1, so a single matrix has one dimension."""
    arrays: list[tuple[str, Floats]] = []
    for name in sorted(importance.entries, key=str.encode):
        entry = importance.entries[name]
        n_matrices = len(entry.counts)
        full = entry.sums if n_matrices > 1 else entry.sums.reshape(-1)
        sums = full.astype(np.float32)
        counts = entry.counts.reshape((n_matrices, 1) if n_matrices > 1 else (1,))
        arrays += [(name + _SUMS, sums), (name + _COUNTS, counts.astype(np.float32))]
        if not np.array_equal(sums, full):
            arrays.append((name + _FULL_SUMS, full.astype(np.float64)))
    return arrays


def _metadata(importance: Importance) -> Metadata:
    return {
        "general.type": string("imatrix"),
        "imatrix.datasets": strings(list(importance.datasets)),
        "imatrix.chunk_count": uint32(importance.chunk_count),
        "imatrix.chunk_size": uint32(importance.chunk_size),
    }


def replace_file(path: Path, parts: Sequence[bytes]) -> None:
    """Write a file so that it appears whole or not at all; raises OutputError."""
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise
