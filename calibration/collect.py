"""Calibration: run a model over texts and gather how strongly each input column of its weights is used."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemma4_quant.calibration.accumulate import Accumulator
from gemma4_quant.calibration.importance import Importance, write_importance
from gemma4_quant.errors import InputError
from gemma4_quant.progress import Progress, SilentProgress
from gemma4_quant.runner.devices import device_text
from gemma4_quant.runner.session import BATCH_TOKENS, LOGITS_BYTES, Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.text import chunk_text
from gemma4_quant.writing.destination import check_destination


@dataclass(frozen=True)
class UnseenExperts:
    """Matrices of a weight that no token was routed to."""

    name: str
    experts: tuple[int, ...]


@dataclass(frozen=True)
class CalibrationResult:
    """What `calibrate` wrote.

    n_tensors: weights with statistics. unseen: experts without; they count as average ones when quantizing.
    device: what ran the model.
    """

    path: Path
    model: Path
    n_chunks: int
    n_ctx: int
    n_tokens: int
    n_tensors: int
    unseen: tuple[UnseenExperts, ...]
    device: str
    n_threads: int
    seconds: float
    tokens_per_second: float


def calibrate(
    model: Path,
    texts: Sequence[Path],
    *,
    output: Path,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int | None = None,
    process_output: bool = False,
    parse_special: bool = False,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Write an importance file for a model from texts, with llama-imatrix's numbers.

    Each text is cut into chunks of `n_ctx` tokens on its own; n_chunks: at most so many in all. n_threads: None for
    all cores. n_gpu_layers: None for all that fit. process_output: also gather statistics of the output matrix.
    parse_special: read `<bos>` and the like in the texts as tokens. Raises InputError and its kinds for what cannot
    be read, TextError for a text too short, NonFiniteError when activations overflow, OutputError when the file
    cannot be written.
    """
    if not texts:
        raise InputError("no text to calibrate with; give at least one file")
    check_destination(output, [model, *texts])
    progress = progress or SilentProgress()
    with LoadedModel(model, n_gpu_layers=n_gpu_layers) as loaded:
        chunks = _chunks(loaded, texts, n_ctx, n_chunks, parse_special=parse_special)
        accumulator = Accumulator(process_output=process_output)
        options = _session_options(loaded, len(chunks), n_ctx, n_threads)
        with Session(loaded, options, accumulator) as session:
            started = time.monotonic()
            _run(session, chunks, accumulator, progress)
            seconds = time.monotonic() - started
            used_threads = session.n_threads
    # llama-imatrix counts whole chunks of the activations it saw, so what it skips can cost the last chunk.
    n_whole_chunks = accumulator.n_inputs // n_ctx
    importance = Importance(accumulator.entries(), tuple(map(str, texts)), n_whole_chunks, n_ctx)
    write_importance(output, importance)
    return CalibrationResult(
        path=output,
        model=model,
        n_chunks=len(chunks),
        n_ctx=n_ctx,
        n_tokens=chunks.size,
        n_tensors=len(importance.entries),
        unseen=tuple(
            UnseenExperts(name, experts) for name in sorted(importance.names) if (experts := importance.unseen(name))
        ),
        device=device_text(n_gpu_layers),
        n_threads=used_threads,
        seconds=seconds,
        tokens_per_second=chunks.size / seconds,
    )


def _chunks(
    model: LoadedModel, texts: Sequence[Path], n_ctx: int, n_chunks: int | None, *, parse_special: bool
) -> npt.NDArray[np.int32]:
    parts = [chunk_text(model, text, n_ctx, n_chunks, parse_special=parse_special).tokens for text in texts]
    return np.concatenate(parts)[:n_chunks]


def _session_options(model: LoadedModel, n_chunks: int, n_ctx: int, n_threads: int | None) -> SessionOptions:
    """Size a session.

    Every position asks for logits, or llama.cpp would skip the last layer's feed-forward for it; so the memory for
    logits bounds the batch.
    """
    n_batch = max(1, min(BATCH_TOKENS, LOGITS_BYTES // (4 * model.n_vocab)))
    together = max(1, min(n_chunks, n_batch // n_ctx))
    n_batch = min(n_batch, together * n_ctx)
    return SessionOptions(n_ctx=n_ctx, n_sequences=together, n_batch=n_batch, n_outputs=n_batch, n_threads=n_threads)


def _run(session: Session, chunks: npt.NDArray[np.int32], accumulator: Accumulator, progress: Progress) -> None:
    together, n_ctx = session.options.n_sequences, session.options.n_ctx
    progress.start("calibrate", len(chunks), "chunk")
    try:
        for first in range(0, len(chunks), together):
            group = chunks[first : first + together]
            session.clear()
            step = _even_step(n_ctx, session.options.n_batch // len(group))
            for start in range(0, n_ctx, step):
                session.decode(group[:, start : start + step], start, slice(None))
            accumulator.check_finite()
            progress.advance(len(group))
    finally:
        progress.finish()


def _even_step(n_positions: int, most: int) -> int:
    """Return positions per decode, as even as can be: a short rest would not be counted (Accumulator.wants)."""
    n_steps = -(-n_positions // most)
    return -(-n_positions // n_steps)
