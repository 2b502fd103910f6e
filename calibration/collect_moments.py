"""Gathering second moments: passes over the text, each for as many weights as memory allows."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemma4_quant import __version__
from gemma4_quant.calibration.collect import CalibrationOptions
from gemma4_quant.calibration.moments import Provenance
from gemma4_quant.calibration.moments_collector import MomentsCollector
from gemma4_quant.calibration.moments_plan import DEFAULT_MEMORY_BYTES, MomentsPlan, plan_moments
from gemma4_quant.calibration.moments_writing import EntryLayout, MomentsWriter
from gemma4_quant.calibration.sources import TextSource, corpus_chunks, user_chunks
from gemma4_quant.calibration.survey import survey
from gemma4_quant.cores import n_cores
from gemma4_quant.errors import InputError
from gemma4_quant.metadata import get_string
from gemma4_quant.progress import Progress, SilentProgress
from gemma4_quant.runner.session import BATCH_TOKENS, LOGITS_BYTES, Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel, Tokens
from gemma4_quant.writing.destination import check_destination

HELD_OUT_EVERY = 8
"""One chunk of so many is in no sum: enough to draw vectors from, and little of the text."""


@dataclass(frozen=True)
class NumberedChunks:
    """Chunks of a text.

    tokens: (n_chunks, n_ctx) int32. first: number of the first of them in the whole text, of which others may gather
    the rest; which chunks are held out is counted over the whole.
    """

    tokens: npt.NDArray[np.int32]
    first: int = 0

    def __iter__(self) -> Iterator[tuple[int, Tokens, bool]]:
        """Iterate over the number of each chunk, its tokens, and whether it is held out."""
        for number, tokens in enumerate(self.tokens, self.first):
            yield number, tokens, number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1

    @property
    def n_held_out(self) -> int:
        """Chunks that are held out."""
        return sum(is_held_out for _, _, is_held_out in self)


@dataclass(frozen=True)
class MomentsResult:
    """What `collect_moments` wrote.

    n_weights: that have moments, in n_entries entries, n_full of them with the full matrix, the rest with blocks of
    256 columns on the diagonal. n_passes: over the text. n_tokens: in the sums, without those of held-out chunks.
    n_bytes: of the file. memory_bytes: of the sums, at most.
    """

    path: Path
    n_weights: int
    n_entries: int
    n_full: int
    n_passes: int
    n_tokens: int
    n_held_out_tokens: int
    n_bytes: int
    memory_bytes: int
    seconds: float


def collect_moments(
    model: LoadedModel,
    chunks: NumberedChunks,
    output: Path,
    *,
    datasets: Sequence[str],
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> MomentsResult:
    """Run chunks through a model and write the second moments of every weight's input.

    datasets: names of the texts, for the file. memory_bytes: for the sums; see plan_moments. An interrupted run goes
    on with the pass it was in. Raises InputError without chunks, NonFiniteError when activations overflow,
    OutputError when the file cannot be written.
    """
    if not len(chunks.tokens):
        raise InputError("there is no chunk of text to gather second moments from")
    started = time.monotonic()
    progress = progress or SilentProgress()
    n_chunks, n_ctx = chunks.tokens.shape
    n_tokens = (n_chunks - chunks.n_held_out) * n_ctx
    plan = plan_moments(survey(model, n_threads=n_threads), n_tokens, memory_bytes)
    name = get_string(model.file.metadata, "general.name", "")
    provenance = Provenance(name, tuple(datasets), n_chunks, n_ctx, chunks.n_held_out)
    with MomentsWriter(output, plan.entries, provenance, _digest(model, chunks, plan), [model.path]) as writer:
        left = set(writer.remaining())
        passes = [entries for entries in plan.passes if left.intersection(entries)]
        progress.start("second moments", len(passes) * n_chunks, "chunk")
        try:
            for entries in passes:
                collector = _evaluated(model, chunks, entries, n_threads, progress)
                _write(writer, entries, collector)
        finally:
            progress.finish()
    return MomentsResult(
        path=output,
        n_weights=sum(len(entry.names) for entry in plan.entries),
        n_entries=len(plan.entries),
        n_full=sum(entry.block_width == entry.n_in for entry in plan.entries),
        n_passes=len(plan.passes),
        n_tokens=n_tokens,
        n_held_out_tokens=chunks.n_held_out * n_ctx,
        n_bytes=output.stat().st_size,
        memory_bytes=plan.memory_bytes,
        seconds=time.monotonic() - started,
    )


def _digest(model: LoadedModel, chunks: NumberedChunks, plan: MomentsPlan) -> str:
    """Return what tells the numbers of one run from those of another."""
    state = hashlib.sha256(f"{__version__} {chunks.first} {plan}".encode())
    for tensor in model.file.tensors:
        state.update(tensor.source.identity)
    state.update(np.ascontiguousarray(chunks.tokens).tobytes())
    return state.hexdigest()


def _evaluated(
    model: LoadedModel,
    chunks: NumberedChunks,
    entries: Sequence[EntryLayout],
    n_threads: int | None,
    progress: Progress,
) -> MomentsCollector:
    """Make one pass over the text; returns what it gathered for `entries`."""
    collector = MomentsCollector(entries, n_threads or n_cores())
    n_ctx = chunks.tokens.shape[1]
    # Every position asks for logits, or llama.cpp would skip the last layer's feed-forward for it.
    n_batch = max(1, min(BATCH_TOKENS, LOGITS_BYTES // (4 * model.n_vocab), n_ctx))
    options = SessionOptions(n_ctx=n_ctx, n_batch=n_batch, n_outputs=n_batch, n_threads=n_threads)
    with Session(model, options, collector) as session:
        for number, tokens, is_held_out in chunks:
            collector.begin_chunk(number, held_out=is_held_out)
            session.clear()
            for start in range(0, n_ctx, n_batch):
                session.decode(tokens[None, start : start + n_batch], start, slice(None))
            collector.check_finite()
            progress.advance(1)
    return collector


def _write(writer: MomentsWriter, entries: Sequence[EntryLayout], collector: MomentsCollector) -> None:
    for entry in entries:
        for matrix, running in enumerate(collector.running[entry.name]):
            writer.write(entry, matrix, running.result())
    writer.commit(entries)


def calibrate_moments(
    model: Path,
    texts: Sequence[Path | TextSource],
    output: Path,
    *,
    options: CalibrationOptions | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    progress: Progress | None = None,
) -> MomentsResult:
    """Write the second moments of a model's inputs, from the same chunks that `calibrate` cuts.

    texts: as for `calibrate`; the built-in corpus when there are none. Raises what calibrate and collect_moments do.
    """
    options = options or CalibrationOptions()
    sources = [text if isinstance(text, TextSource) else TextSource(text) for text in texts]
    check_destination(output, [model, *(source.path for source in sources)])
    with LoadedModel(model, n_gpu_layers=options.n_gpu_layers, devices=options.devices) as loaded:
        whole = user_chunks(loaded, sources, options.cutting) if sources else corpus_chunks(loaded, options.cutting)
        text = whole.part(options.first_chunk, options.n_chunks)
        return collect_moments(
            loaded,
            NumberedChunks(text.tokens, options.first_chunk),
            output,
            datasets=text.datasets,
            memory_bytes=memory_bytes,
            n_threads=options.n_threads,
            progress=progress,
        )
