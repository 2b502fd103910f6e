"""A reference's predictions in a file: the likeliest tokens of each position, mass and a sample of the rest.

File, little-endian: 8 bytes of magic; uint64 length of a header, which is a JSON object; for each window int32
length, domain and document; int32 tokens of all windows; one bit for each token, whether it is scored; for each
scored token a record (`_record_type`). At Gemma's 262,144 tokens a record has 6,164 bytes, a position of llama.cpp's
file 524,296.
"""

import json
import os
import struct
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gemma4_quant.errors import CheckpointError, InputError, OutputError, ResultsError
from gemma4_quant.formats.json_input import parse_json_object
from gemma4_quant.measuring.compact_kernels import compare_rows, store_rows
from gemma4_quant.measuring.decoding import Piece
from gemma4_quant.measuring.fairness import Identity
from gemma4_quant.measuring.kernels import Float64, Logits, Targets
from gemma4_quant.measuring.position_scores import PositionScores, check_targets, in_slices, refuse_non_finite
from gemma4_quant.measuring.result_files import plain, read_as
from gemma4_quant.measuring.results import ModelFile, TextUsed
from gemma4_quant.measuring.scored_text import MAX_DOMAINS, Passage, ScoredText
from gemma4_quant.model import DataFile
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.texts.packing import Window

MAGIC = b"G4QREF01"
TOP_TOKENS = 512
SAMPLE_TOKENS = 256
"""Records hold so many tokens: all of a small vocabulary, 85 times less than llama.cpp's file of Gemma's."""

_MAX_HEADER = 16 << 20
_MAX_VOCABULARY = 1 << 24
_MAX_TOKENS = 1 << 31


@dataclass(frozen=True)
class Header:
    """What a file says of itself. model: None where only its predictions matter (a file for the moment)."""

    n_vocab: int
    n_top: int
    n_sample: int
    n_windows: int
    n_tokens: int
    framing: str
    n_ctx: int
    domains: tuple[TextUsed, ...]
    identity: Identity
    model: ModelFile | None


def _record_type(n_top: int, n_sample: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("nll", "<f8"),
            ("tail", "<f8"),
            ("best", "<u4"),
            ("top_ids", "<u4", (n_top,)),
            ("top_log_p", "<f4", (n_top,)),
            ("sample_ids", "<u4", (n_sample,)),
            ("sample_log_p", "<f4", (n_sample,)),
        ]
    )


def record_bytes(n_vocab: int) -> int:
    """Return the bytes of a position's record."""
    return _record_type(*_counts(n_vocab)).itemsize


def _counts(n_vocab: int) -> tuple[int, int]:
    """Return how many tokens a record holds, likeliest and sampled; a whole vocabulary needs no sample."""
    return (n_vocab, 0) if n_vocab <= TOP_TOKENS + SAMPLE_TOKENS else (TOP_TOKENS, SAMPLE_TOKENS)


class CompactWriter:
    """Writes a file of predictions; a context manager. The file appears under its name when all is written."""

    def __init__(
        self, path: Path, n_vocab: int, text: ScoredText, identity: Identity, model: ModelFile | None = None
    ) -> None:
        """Begin a file; raises OutputError when it cannot be written."""
        n_top, n_sample = _counts(n_vocab)
        windows = [passage.window for passage in text.passages]
        n_tokens = sum(len(window.tokens) for window in windows)
        header = Header(
            n_vocab, n_top, n_sample, len(windows), n_tokens, text.framing, text.n_ctx, text.domains, identity, model
        )
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._type = _record_type(n_top, n_sample)
        self._n_vocab = n_vocab
        self._n_done = 0
        self._n_positions = text.n_positions
        raw = json.dumps(plain(header), allow_nan=False).encode()
        table = np.array([[len(p.window.tokens), p.domain, p.document] for p in text.passages], "<i4")
        tokens = np.concatenate([window.tokens for window in windows]).astype("<i4")
        scored = np.packbits(np.concatenate([window.is_scored for window in windows]))
        try:
            self._file = self._partial.open("wb")
            self._file.write(MAGIC + struct.pack("<Q", len(raw)) + raw)
            self._file.write(table.tobytes() + tokens.tobytes() + scored.tobytes())
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Give the file its name if it is complete, else delete it."""
        try:
            self._file.close()
            if kind is None and self._n_done == self._n_positions:
                os.replace(self._partial, self._path)
            else:
                self._partial.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error

    def record(self, logits: Logits, targets: Targets, n_threads: int) -> None:
        """See Recorder."""
        check_targets(logits.shape, targets)
        records = np.zeros(len(targets), self._type)
        columns = {name: np.zeros(records[name].shape, records[name].dtype) for name in self._type.names or ()}

        def work(start: int, stop: int) -> None:
            store_rows(start, stop, logits, targets, self._n_done, **columns)

        in_slices(work, len(targets), n_threads)
        refuse_non_finite(columns["nll"])
        for name, values in columns.items():
            records[name] = values
        try:
            self._file.write(records.tobytes())
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error
        self._n_done += len(targets)


class CompactFile:
    """A file of predictions that was opened and checked; a context manager."""

    def __init__(self, path: Path) -> None:
        """Read all but the predictions; raises ResultsError when the file is damaged."""
        self.path = path
        self._file = DataFile(path)
        self.n_bytes = self._file.n_bytes
        self.header, at = self._read_header()
        self._check_header()
        self._text, at = self._read_text(at)
        self._type = _record_type(self.header.n_top, self.header.n_sample)
        self._first_record = at
        expected = at + self._text.n_positions * self._type.itemsize
        if self.n_bytes != expected:
            self._fail(f"has {self.n_bytes} bytes, not {expected}: it is cut short or damaged")

    def _read(self, offset: int, n_bytes: int) -> bytes:
        if offset + n_bytes > self.n_bytes:
            self._fail("is cut short")
        return self._file.read(offset, n_bytes)

    def _read_header(self) -> tuple[Header, int]:
        if self._read(0, 8) != MAGIC:
            self._fail("is no file of stored predictions")
        (length,) = struct.unpack("<Q", self._read(8, 8))
        if length > _MAX_HEADER:
            self._fail("has a damaged header")
        try:
            document = parse_json_object(self._read(16, length), str(self.path))
        except CheckpointError as error:
            raise ResultsError(str(error)) from error
        return read_as(Header, document, str(self.path)), 16 + length

    def _check_header(self) -> None:
        header = self.header
        is_sound = (
            0 < header.n_vocab <= _MAX_VOCABULARY
            and 0 < header.n_top <= header.n_vocab
            and 0 <= header.n_sample <= header.n_vocab
            and (header.n_sample > 0 or header.n_top == header.n_vocab)
            and 0 < header.n_windows <= header.n_tokens <= _MAX_TOKENS
            and 0 < len(header.domains) <= MAX_DOMAINS
            and header.n_ctx > 1
        )
        if not is_sound:
            self._fail("has impossible counts in its header")

    def _read_text(self, at: int) -> tuple[ScoredText, int]:
        header = self.header
        table = np.frombuffer(self._read(at, 12 * header.n_windows), "<i4").reshape(-1, 3)
        at += 12 * header.n_windows
        tokens = np.frombuffer(self._read(at, 4 * header.n_tokens), "<i4").astype(np.int32)
        at += 4 * header.n_tokens
        n_flags = -(-header.n_tokens // 8)
        flags = np.unpackbits(np.frombuffer(self._read(at, n_flags), np.uint8), count=header.n_tokens) > 0
        self._check_tables(table, tokens)
        ends = np.cumsum(table[:, 0].astype(np.int64))
        passages = []
        for (length, domain, document), end in zip(table.tolist(), ends.tolist(), strict=True):
            window = Window(document, tokens[end - length : end], flags[end - length : end])
            if window.is_scored[0] or not window.n_scored:
                self._fail("scores what nothing predicts")
            passages.append(Passage(domain, document, window))
        text = ScoredText(header.framing, header.n_ctx, header.domains, tuple(passages))
        return text, at + n_flags

    def _check_tables(self, table: npt.NDArray[np.int32], tokens: npt.NDArray[np.int32]) -> None:
        lengths, domains, documents = table.astype(np.int64).T
        if lengths.min() < 2 or lengths.max() > self.header.n_ctx or lengths.sum() != self.header.n_tokens:
            self._fail("has windows of impossible lengths")
        if domains.min() < 0 or domains.max() >= len(self.header.domains) or documents.min() < 0:
            self._fail("names domains that it does not have")
        if tokens.min() < 0 or tokens.max() >= self.header.n_vocab:
            self._fail("holds tokens outside of its vocabulary")

    def text(self, _model: LoadedModel) -> ScoredText:
        """Return the text that was scored, as all models with its tokens read it."""
        return self._text

    def reference(self) -> "CompactReference":
        """Return the predictions from their beginning."""
        return CompactReference(self)

    def records(self, first: int, n: int) -> npt.NDArray[Any]:
        """Return the records of positions from `first` on; raises ResultsError when they are damaged."""
        size = self._type.itemsize
        found = np.frombuffer(self._read(self._first_record + first * size, n * size), self._type)
        ids = [found["top_ids"], found["sample_ids"], found["best"]]
        values = [found["top_log_p"], found["sample_log_p"], -found["nll"], found["tail"]]
        in_range = all((each < self.header.n_vocab).all() for each in ids)
        # Logarithms of probabilities are at most 0, rounded; the tail's mass is at most 1.
        plausible = all((each <= 1.001).all() and (each >= -1e5).all() for each in values)
        if not in_range or not plausible or (found["tail"] < 0).any():
            self._fail(f"has damaged predictions from number {first} on")
        return found

    def _fail(self, problem: str) -> Any:
        raise ResultsError(f"{self.path} {problem}; store the reference again (--save-reference)")


class CompactReference:
    """Stored predictions as an evaluation asks for them."""

    @property
    def records(self) -> bool:
        """See Reference."""
        return False

    def __init__(self, file: CompactFile) -> None:
        """Take a file."""
        self._file = file
        self._variance = 0.0
        self._n_compared = 0

    @property
    def identity(self) -> bytes:
        """Return bytes that tell this file from others."""
        stat = self._file.path.stat()
        return f"{self._file.path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode(errors="replace")

    @property
    def storage_error(self) -> float | None:
        """Standard error, in nats, that storing adds to the mean divergence of what was compared so far."""
        return sqrt(self._variance) / max(1, self._n_compared)

    def begin(self) -> None:
        """See Reference."""

    def predictions(self, piece: Piece, first: int) -> "_CompactPredictions":
        """See Reference."""
        return _CompactPredictions(self, self._file.records(first, len(piece.targets)), self._file.header.n_vocab)

    def add_variance(self, variance: Float64) -> None:
        """Count what the sample adds to the variance of the divergence at some positions."""
        self._variance += float(variance.sum())
        self._n_compared += len(variance)


@dataclass(frozen=True)
class _CompactPredictions:
    owner: CompactReference
    found: npt.NDArray[Any]
    n_vocab: int

    def own_scores(self, _targets: Targets, _n_threads: int) -> PositionScores:
        """See Predictions."""
        return PositionScores(self.found["nll"].astype(np.float64))

    def compare(self, logits: Logits, targets: Targets, n_threads: int) -> PositionScores:
        """See Predictions."""
        check_targets(logits.shape, targets)
        if logits.shape[1] != self.n_vocab:
            raise InputError(f"predictions of {logits.shape[1]} tokens are compared with some of {self.n_vocab}")
        best, tail = (np.ascontiguousarray(self.found[name]) for name in ("best", "tail"))
        top_ids, top = (np.ascontiguousarray(self.found[name]) for name in ("top_ids", "top_log_p"))
        sample_ids, sample = (np.ascontiguousarray(self.found[name]) for name in ("sample_ids", "sample_log_p"))
        nll, divergence, variance = (np.empty(len(targets), np.float64) for _ in range(3))
        same_top = np.empty(len(targets), np.bool_)

        def work(start: int, stop: int) -> None:
            stored = (best, tail, top_ids, top, sample_ids, sample)
            compare_rows(start, stop, logits, targets, *stored, nll, divergence, same_top, variance)

        in_slices(work, len(targets), n_threads)
        refuse_non_finite(nll)
        refuse_non_finite(divergence)
        self.owner.add_variance(variance)
        return PositionScores(nll, self.found["nll"].astype(np.float64), divergence, same_top)
