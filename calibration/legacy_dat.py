"""llama.cpp's older importance files, which came before those in GGUF and are still passed around (`imatrix.dat`).

Little-endian: int32 number of entries; for each its name (int32 length, bytes), int32 n_call, int32 n_values, and
float32 values; then, where the file goes on, int32 number of chunks and the name of the text (int32 length, bytes).
Values are mean squares times n_call, and a call is a chunk (tools/imatrix/imatrix.cpp, save_imatrix_legacy;
common/imatrix-loader.cpp, common_imatrix_load_legacy). The file does not say how many matrices an entry has, nor how
long its chunks were.
"""

import struct
from pathlib import Path

import numpy as np

from gemma4_quant.calibration.importance import Entry, Importance, is_plausible, refuse_implausible, replace_file
from gemma4_quant.errors import ImportanceError, listed
from gemma4_quant.formats.gguf_header import MAGIC
from gemma4_quant.model import DataFile

CHUNK_TOKENS = 512
"""Tokens taken for a call when reading: what llama-imatrix takes without -c."""

_MAX_NAME_BYTES = 1 << 10  # GGML_MAX_NAME is 64
_MAX_DATASET_BYTES = 1 << 16
_MAX_ENTRIES = 1 << 16  # as many as a GGUF file may have tensors


def is_legacy(path: Path) -> bool:
    """Tell whether a file can be read and may have the older format: a plausible count where GGUF has its letters."""
    file = DataFile(path)
    if file.n_bytes < 4:
        return False
    start = file.read(0, 4)
    return start != MAGIC and 0 < struct.unpack("<i", start)[0] <= _MAX_ENTRIES


def read_legacy(path: Path) -> Importance:
    """Read an importance file in the older format.

    Each entry comes as one matrix with one count, n_call chunks; `Entry.of_matrices` parts it. Raises
    ImportanceError when the file ends early or holds values that no calibration gives.
    """
    reader = _Reader(DataFile(path))
    entries = {}
    for _ in range(reader.count("number of entries", _MAX_ENTRIES)):
        name = reader.text("name", _MAX_NAME_BYTES)
        n_calls = reader.count(f"number of calls of {name!r}", 1 << 31)
        values = reader.floats(reader.count(f"number of values of {name!r}", 1 << 31))
        count = float(n_calls * CHUNK_TOKENS)
        entries[name] = Entry(values.reshape(1, -1).astype(np.float64) * CHUNK_TOKENS, np.array([count]))
    if bad := [name for name, entry in entries.items() if not is_plausible(entry)]:
        raise ImportanceError(f"{path}: negative, NaN or infinite statistics of {listed(bad)}; calibrate again")
    n_chunks, datasets = 0, []
    if not reader.at_end:
        n_chunks = reader.count("number of chunks", 1 << 31, least=0)
        if not reader.at_end and (dataset := reader.text("name of the text", _MAX_DATASET_BYTES)):
            datasets.append(dataset)
    return Importance(entries, tuple(datasets), n_chunks, CHUNK_TOKENS)


class _Reader:
    """Position in a file."""

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= self._file.n_bytes

    def _take(self, n_bytes: int, what: str) -> bytes:
        if self._at + n_bytes > self._file.n_bytes:
            raise ImportanceError(
                f"{self._file.path} ends within the {what} at byte {self._at}; it is cut off, or no importance file"
            )
        data = self._file.read(self._at, n_bytes)
        self._at += n_bytes
        return data

    def count(self, what: str, most: int, *, least: int = 1) -> int:
        (number,) = struct.unpack("<i", self._take(4, what))
        if not least <= number <= most:
            raise ImportanceError(f"{self._file.path}: the {what} is {number}; it is damaged, or no importance file")
        return int(number)

    def text(self, what: str, most: int) -> str:
        length = self.count(f"length of a {what}", most, least=0)
        return self._take(length, what).decode("utf-8", errors="replace")

    def floats(self, n_values: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.frombuffer(self._take(4 * n_values, "values"), "<f4")


def write_legacy(path: Path, importance: Importance) -> None:
    """Write an importance file in the older format, as llama-imatrix does with `--output-format dat`.

    Weights of which nothing was seen are left out. An expert that was never routed to gets the mean of its layer,
    where llama-imatrix writes 1: the format has no counts by which a reader could tell. Raises ImportanceError when a
    value is not finite or negative, or nothing is left to write; OutputError when the file cannot be written.
    """
    refuse_implausible(importance)
    seen = sorted((name for name, entry in importance.entries.items() if entry.counts.any()), key=str.encode)
    if not seen:
        raise ImportanceError("no activation was counted, so there is nothing to write; calibrate with more text")
    parts = [struct.pack("<i", len(seen))]
    for name in seen:
        n_calls = _n_calls(importance, name)
        values = importance.mean_square(name) * np.float32(n_calls)
        parts += [_text(name), struct.pack("<ii", n_calls, values.size), values.astype("<f4").tobytes()]
    dataset = importance.datasets[-1] if importance.datasets else ""
    parts += [struct.pack("<i", importance.chunk_count), _text(dataset)]
    replace_file(path, parts)


def _n_calls(importance: Importance, name: str) -> int:
    """Return the chunks that an entry's most used matrix saw, rounded up, so that it is never 0."""
    most = int(importance.entries[name].counts.max())
    chunk_size = importance.chunk_size or CHUNK_TOKENS
    return max(1, -(-most // chunk_size))


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<i", len(raw)) + raw
