"""llama.cpp's file of stored log-probabilities (llama-perplexity --kl-divergence-base), read and written.

File, little-endian (perplexity.cpp): `_logits_`; int32 n_ctx, n_vocab, n_chunk; int32 tokens of all chunks; for each
scored position float32 step, float32 smallest log-probability and n_vocab uint16 codes, padded to an even number.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gemma4_quant.errors import InputError, OutputError, ResultsError
from gemma4_quant.measuring.decoding import Piece
from gemma4_quant.measuring.kernels import Logits, Targets
from gemma4_quant.measuring.llama_kernels import compare_coded_rows, encode_rows
from gemma4_quant.measuring.position_scores import PositionScores, check_targets, in_slices, refuse_non_finite
from gemma4_quant.measuring.results import TextUsed
from gemma4_quant.measuring.scored_text import Passage, ScoredText, second_half, tokens_digest
from gemma4_quant.model import DataFile
from gemma4_quant.runner.weights import LoadedModel

MAGIC = b"_logits_"

_HEADER = struct.Struct("<8siii")
_MAX_VOCABULARY = 1 << 24
_MAX_TOKENS = 1 << 31


def record_bytes(n_vocab: int) -> int:
    """Return the bytes that one scored position takes."""
    return 2 * (2 * ((n_vocab + 1) // 2) + 4)


class LlamaWriter:
    """Writes such a file; a context manager. The file appears under its name when all is written."""

    def __init__(self, path: Path, n_vocab: int, text: ScoredText) -> None:
        """Begin a file.

        Raises InputError for a text that the file cannot hold: only raw chunks of one length, their second halves
        scored. OutputError when the file cannot be written.
        """
        windows = [passage.window for passage in text.passages]
        n_ctx = text.n_ctx
        half = second_half(np.zeros(n_ctx, np.int32)).is_scored
        for window in windows:
            if len(window.tokens) != n_ctx or (window.is_scored != half).any():
                raise InputError(
                    "llama.cpp's file holds nothing but raw text in chunks of one length; add --raw and give one "
                    "text, or store the reference compactly"
                )
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._n_vocab = n_vocab
        self._n_missing = text.n_positions
        try:
            self._file = self._partial.open("wb")
            self._file.write(_HEADER.pack(MAGIC, n_ctx, n_vocab, len(windows)))
            for window in windows:
                self._file.write(window.tokens.astype("<i4").tobytes())
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
            if kind is None and self._n_missing == 0:
                self._partial.replace(self._path)
            else:
                self._partial.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error

    def record(self, logits: Logits, targets: Targets, n_threads: int) -> None:
        """See Recorder."""
        check_targets(logits.shape, targets)
        scales = np.zeros((len(logits), 2), np.float32)
        codes = np.zeros((len(logits), 2 * ((self._n_vocab + 1) // 2)), np.uint16)
        in_slices(lambda start, stop: encode_rows(start, stop, logits, scales, codes), len(logits), n_threads)
        refuse_non_finite(scales[:, 1].astype(np.float64))
        records = np.concatenate([scales.view(np.uint16), codes], axis=1)
        try:
            self._file.write(records.astype("<u2").tobytes())
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error
        self._n_missing -= len(targets)


class LlamaFile:
    """A file of llama.cpp that was opened and checked."""

    def __init__(self, path: Path) -> None:
        """Read all but the predictions; raises ResultsError when the file is damaged."""
        self.path = path
        self._file = DataFile(path)
        self.n_bytes = self._file.n_bytes
        if self.n_bytes < _HEADER.size:
            self._fail("is cut short")
        magic, self.n_ctx, self.n_vocab, self.n_chunks = _HEADER.unpack(self._file.read(0, _HEADER.size))
        counts = (self.n_ctx, self.n_vocab, self.n_chunks)
        if magic != MAGIC or min(counts) < 1 or self.n_ctx < 4 or self.n_vocab > _MAX_VOCABULARY:
            self._fail("is no file of stored log-probabilities")
        n_tokens = self.n_ctx * self.n_chunks
        self._n_scored = self.n_ctx - 1 - self.n_ctx // 2
        self._first_record = _HEADER.size + 4 * n_tokens
        expected = self._first_record + self.n_chunks * self._n_scored * record_bytes(self.n_vocab)
        if n_tokens > _MAX_TOKENS or self.n_bytes != expected:
            self._fail(f"has {self.n_bytes} bytes, not {expected}: it is cut short or damaged")
        self._tokens = np.frombuffer(self._file.read(_HEADER.size, 4 * n_tokens), "<i4").astype(np.int32)
        if self._tokens.min() < 0 or self._tokens.max() >= self.n_vocab:
            self._fail("holds tokens outside of its vocabulary")

    def text(self, model: LoadedModel) -> ScoredText:
        """Return the text; its chunks begin with BOS where the model wants it, which the file does not hold."""
        chunks = self._tokens.reshape(self.n_chunks, self.n_ctx).copy()
        if model.add_bos:
            chunks[:, 0] = model.bos
        passages = tuple(Passage(0, 0, second_half(chunk)) for chunk in chunks)
        used = TextUsed(
            domain="text",
            source=str(self.path),
            sha256=tokens_digest(passages),
            n_documents=1,
            n_tokens=len(self._tokens),
            n_chunks=self.n_chunks,
            n_positions=self.n_chunks * self._n_scored,
        )
        return ScoredText("tokens", self.n_ctx, (used,), passages)

    def reference(self) -> "LlamaReference":
        """Return the predictions from their beginning."""
        return LlamaReference(self)

    def records(self, first: int, n: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16]]:
        """Return steps and smallest log-probabilities (n, 2), and codes (n, n_vocab), from position `first` on."""
        size = record_bytes(self.n_vocab)
        raw = np.frombuffer(self._file.read(self._first_record + first * size, n * size), "<u2").reshape(n, -1)
        scales = np.ascontiguousarray(raw[:, :4]).view("<f4").astype(np.float32)
        # The likeliest of n_vocab tokens is never below 1 / n_vocab, nor any stored one 16 nats below that.
        is_sound = (scales[:, 0] >= 0) & (scales[:, 0] < 1e-2) & (scales[:, 1] > -100) & (scales[:, 1] <= 1e-3)
        if not is_sound.all():
            self._fail(f"has damaged predictions from number {first} on")
        return scales, np.ascontiguousarray(raw[:, 4 : 4 + self.n_vocab]).astype(np.uint16)

    def _fail(self, problem: str) -> Any:
        raise ResultsError(f"{self.path} {problem}; write it again")


class LlamaReference:
    """Stored log-probabilities as an evaluation asks for them."""

    @property
    def records(self) -> bool:
        """See Reference."""
        return False

    @property
    def storage_error(self) -> None:
        """See StoredReference: nothing is left out."""
        return None

    def __init__(self, file: LlamaFile) -> None:
        """Take a file."""
        self._file = file

    @property
    def identity(self) -> bytes:
        """Return bytes that tell this file from others."""
        stat = self._file.path.stat()
        return f"{self._file.path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode(errors="replace")

    def begin(self) -> None:
        """See Reference."""

    def predictions(self, piece: Piece, first: int) -> "_CodedPredictions":
        """See Reference."""
        return _CodedPredictions(*self._file.records(first, len(piece.targets)))


@dataclass(frozen=True)
class _CodedPredictions:
    scales: npt.NDArray[np.float32]
    codes: npt.NDArray[np.uint16]

    def own_scores(self, targets: Targets, _n_threads: int) -> PositionScores:
        """See Predictions."""
        chosen = self.codes[np.arange(len(targets)), targets]
        return PositionScores(-(self.scales[:, 0].astype(np.float64) * chosen + self.scales[:, 1]))

    def compare(self, logits: Logits, targets: Targets, n_threads: int) -> PositionScores:
        """See Predictions."""
        check_targets(logits.shape, targets)
        if logits.shape != self.codes.shape:
            raise InputError(
                f"predictions of {logits.shape[1]} tokens are compared with some of {self.codes.shape[1]}"
            )
        reference_nll, nll, divergence = (np.empty(len(targets), np.float64) for _ in range(3))
        same_top = np.empty(len(targets), np.bool_)

        def work(start: int, stop: int) -> None:
            compare_coded_rows(
                start, stop, self.scales, self.codes, logits, targets, reference_nll, nll, divergence, same_top
            )

        in_slices(work, len(targets), n_threads)
        refuse_non_finite(nll)
        refuse_non_finite(divergence)
        return PositionScores(nll, reference_nll, divergence, same_top)
