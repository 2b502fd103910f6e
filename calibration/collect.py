"""Calibration: run a model over texts and gather how strongly each input column of its weights is used."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gemma4_quant import __version__
from gemma4_quant.calibration.accumulate import Accumulator
from gemma4_quant.calibration.coverage import ENOUGH_TOKENS, ExpertCoverage, expert_coverage, is_covered
from gemma4_quant.calibration.files import OutputFormat, write
from gemma4_quant.calibration.importance import Importance
from gemma4_quant.calibration.merging import merge, merge_files
from gemma4_quant.calibration.output_matrix import with_lookups
from gemma4_quant.calibration.passes import PartOfText, Passes, session_options
from gemma4_quant.calibration.resume import ResumeFile, resume_file_of
from gemma4_quant.calibration.self_text import SelfTextOptions, write_self_text
from gemma4_quant.calibration.sources import (
    Cutting,
    TextChunks,
    TextSource,
    corpus_chunks,
    document_chunks,
    joined,
    user_chunks,
)
from gemma4_quant.progress import Progress, SilentProgress
from gemma4_quant.runner.devices import device_text
from gemma4_quant.runner.sampling import SamplingOptions
from gemma4_quant.runner.session import Session
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.texts.framing import Framing, has_template
from gemma4_quant.writing.destination import check_destination


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate.

    n_ctx: tokens of a chunk. first_chunk, n_chunks: which chunks of the whole to run; None for all from the first on.
    framing: see sources.Cutting. parse_special: read `<bos>` and the like in plain text as tokens. process_output:
    gather statistics of the output matrix too, which llama-imatrix leaves out where it is tied. min_expert_tokens: go
    on with the built-in corpus until so many tokens have reached each expert; None for ENOUGH_TOKENS where the text
    is that corpus, and for no more than the text where it is the user's. earlier: importance files of the same model
    to add to. save_every: also write a copy, `NAME.at_N`, each so many chunks. strict_llama: batches as llama-imatrix
    makes them of the chunks asked for (see Passes). n_threads: None for all cores.
    n_self_tokens: let the model write so much text and calibrate with it, beside texts of the user's if there are
    any. seed: of that text. n_gpu_layers: None for all that fit. devices: names of those to offload to, None for all.
    """

    n_ctx: int = 512
    first_chunk: int = 0
    n_chunks: int | None = None
    framing: Framing | None = None
    parse_special: bool = False
    n_self_tokens: int = 0
    seed: int = 0
    process_output: bool = True
    min_expert_tokens: int | None = None
    earlier: Sequence[Path] = ()
    output_format: OutputFormat = OutputFormat.GGUF
    save_every: int | None = None
    strict_llama: bool = False
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    devices: Sequence[str] | None = None

    @property
    def cutting(self) -> Cutting:
        """How texts become chunks."""
        return Cutting(self.n_ctx, self.framing, self.parse_special)

    @property
    def is_part(self) -> bool:
        """Whether only some of the chunks are asked for."""
        return self.first_chunk > 0 or self.n_chunks is not None


@dataclass(frozen=True)
class CalibrationResult:
    """What `calibrate` wrote.

    self_text: what the model wrote, if it did. datasets: what was read; framings: how it was put to the model.
    n_chunks, n_tokens: of this run, n_extra_chunks of them beyond the text to reach more experts, n_resumed_chunks by
    an interrupted run before. n_tensors: weights with statistics. experts: coverage of each layer of experts, against
    min_expert_tokens; the unseen ones count as average ones when quantizing. device: what ran the model.
    """

    path: Path
    model: Path
    self_text: Path | None
    datasets: tuple[str, ...]
    framings: tuple[Framing, ...]
    n_chunks: int
    n_extra_chunks: int
    n_resumed_chunks: int
    n_ctx: int
    n_tokens: int
    n_tensors: int
    min_expert_tokens: int
    experts: tuple[ExpertCoverage, ...]
    device: str
    n_threads: int
    seconds: float
    tokens_per_second: float


def calibrate(
    model: Path,
    texts: Sequence[Path | TextSource] = (),
    *,
    output: Path,
    options: CalibrationOptions | None = None,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Write an importance file for a model, from the built-in corpus or from texts.

    texts: UTF-8 texts, `.jsonl` files of chats, or directories of both. From a plain text it has llama-imatrix's
    numbers. A run that was interrupted is taken up. Raises InputError and its kinds for what cannot be read,
    TextError for a text too short, ChatTemplateError when the template refuses a chat, NonFiniteError when
    activations overflow, RunError when llama.cpp fails, OutputError when the file cannot be written.
    """
    options, progress = options or CalibrationOptions(), progress or SilentProgress()
    sources = [text if isinstance(text, TextSource) else TextSource(text) for text in texts]
    for written in (output, resume_file_of(output)):
        check_destination(written, [model, *(source.path for source in sources), *options.earlier])
    earlier = [("the files to add to", merge_files(options.earlier))] if options.earlier else []
    with LoadedModel(model, n_gpu_layers=options.n_gpu_layers, devices=options.devices) as loaded:
        run = _Calibration(loaded, sources, output, options, progress)
        run.evaluate(progress)
    importance = merge([("this run", run.importance()), *earlier])
    write(output, importance, options.output_format)
    run.state.remove()
    return run.result(model, importance)


def self_text_of(output: Path) -> Path:
    """Return where the text is kept that a model writes for its calibration; `-f` reads it again."""
    return output.with_name(output.stem + ".self.jsonl")


class _Calibration:
    """One run: its text, its state on disk, and what was gathered."""

    def __init__(
        self,
        model: LoadedModel,
        sources: Sequence[TextSource],
        output: Path,
        options: CalibrationOptions,
        progress: Progress,
    ) -> None:
        self._model = model
        self._output = output
        self._options = options
        self._is_built_in = not sources and options.n_self_tokens == 0
        whole = self._whole_text(sources, progress)
        self._text = whole.part(options.first_chunk, options.n_chunks)
        n_planned, n_whole = len(self._text.tokens), len(whole.tokens)
        first, n_whole = (0, n_planned) if options.strict_llama else (options.first_chunk, n_whole)
        self._part = PartOfText(self._text.tokens, first, n_whole)
        self._session_options = session_options(model, n_whole, options.n_ctx, options.n_threads)
        self._used = [self._text]
        self.state = ResumeFile(output, self._digest())
        self._resumed = self.state.load()
        n_resumed = self._resumed.n_chunks if self._resumed else 0
        earlier = self._resumed.entries if self._resumed else None
        self._accumulator = Accumulator(process_output=options.process_output, earlier=earlier)
        self._n_resumed, self._n_done, self._n_planned = n_resumed, 0, n_planned
        self._seconds, self._n_threads = 0.0, 0

    def _whole_text(self, sources: Sequence[TextSource], progress: Progress) -> TextChunks:
        """Return what the user asks for; lets the model write its own text if that is wanted."""
        options = self._options
        if self._is_built_in:
            return corpus_chunks(self._model, options.cutting)
        parts = [user_chunks(self._model, sources, options.cutting)] if sources else []
        if options.n_self_tokens:
            path = self_text_of(self._output)
            sampling = SamplingOptions(seed=options.seed)
            wanted = SelfTextOptions(options.n_self_tokens, sampling=sampling, n_threads=options.n_threads)
            documents = write_self_text(path, self._model, wanted, progress=progress)
            parts.append(document_chunks(self._model, documents, options.cutting, str(path)))
        return joined(parts)

    def _digest(self) -> str:
        """Return what changes with model, text and options; the thread count is left out."""
        options = self._options
        state = hashlib.sha256(f"{__version__} {options.process_output} {self._min_tokens}\n".encode())
        batches = replace(self._session_options, n_threads=None)
        state.update(f"{batches} {self._part.first} {self._part.n_whole}\n".encode())
        state.update(self._text.tokens.tobytes())
        for tensor in self._model.file.tensors:
            state.update(f"{tensor.name} {tensor.shape} {tensor.type.name} ".encode() + tensor.source.identity)
        return state.hexdigest()

    @property
    def _min_tokens(self) -> int:
        """Tokens that each expert shall see before the run ends; 0 when it ends with the text."""
        wanted = self._options.min_expert_tokens
        if wanted is None:
            return ENOUGH_TOKENS if self._is_built_in and not self._options.is_part else 0
        return wanted

    def evaluate(self, progress: Progress) -> None:
        """Run all chunks, then more where experts need them."""
        with Session(self._model, self._session_options, self._accumulator) as session:
            started = time.monotonic()
            passes = Passes(
                session,
                self._accumulator,
                self.state,
                n_resumed=self._n_resumed,
                after_batch=self._copier(),
            )
            passes.run("calibrate", self._part, progress)
            for extra in self._extra_texts():
                if passes.n_done >= self._n_resumed and self._covers_experts():
                    break
                self._used.append(extra)
                part = PartOfText(extra.tokens, 0, len(extra.tokens))
                passes.run("more for the experts", part, progress, self._covers_experts)
            self._n_done = passes.n_done
            self._seconds, self._n_threads = time.monotonic() - started, session.n_threads

    def _extra_texts(self) -> Iterator[TextChunks]:
        """Yield what to go on with where experts need it: the corpus, framed as it has not been yet."""
        framings = list(Framing) if has_template(self._model) else [Framing.RAW]
        for framing in framings if self._min_tokens else ():
            if not self._is_built_in or framing not in self._text.framings:
                yield corpus_chunks(self._model, Cutting(self._options.n_ctx, framing))

    def _covers_experts(self) -> bool:
        return is_covered(self._accumulator.counts(), self._min_tokens)

    def _copier(self) -> Callable[[int], None]:
        """Return what writes a copy each time that a multiple of `save_every` chunks is passed."""
        every, n_copied = self._options.save_every, self._n_resumed

        def copy(n_done: int) -> None:
            nonlocal n_copied
            if every is not None and n_done // every > n_copied // every:
                path = self._output.with_name(f"{self._output.name}.at_{n_done}")
                write(path, self.importance(), self._options.output_format)
            n_copied = n_done

        return copy

    def importance(self) -> Importance:
        """Return what was gathered so far."""
        # llama-imatrix counts whole chunks of the activations it saw, so what it skips can cost the last chunk.
        n_whole_chunks = self._accumulator.n_inputs // self._options.n_ctx
        datasets = tuple(dict.fromkeys(name for text in self._used for name in text.datasets))
        return Importance(with_lookups(self._accumulator.entries()), datasets, n_whole_chunks, self._options.n_ctx)

    def result(self, model: Path, importance: Importance) -> CalibrationResult:
        """Describe the run, and what it wrote."""
        options = self._options
        n_evaluated = (self._n_done - self._n_resumed) * options.n_ctx
        enough = self._min_tokens or ENOUGH_TOKENS
        return CalibrationResult(
            path=self._output,
            model=model,
            self_text=self_text_of(self._output) if options.n_self_tokens else None,
            datasets=tuple(importance.datasets),
            framings=tuple(dict.fromkeys(framing for text in self._used for framing in text.framings)),
            n_chunks=self._n_done,
            n_extra_chunks=self._n_done - self._n_planned,
            n_resumed_chunks=self._n_resumed,
            n_ctx=options.n_ctx,
            n_tokens=self._n_done * options.n_ctx,
            n_tensors=len(importance.entries),
            min_expert_tokens=enough,
            experts=expert_coverage(importance.counts, enough),
            device=device_text(options.n_gpu_layers, options.devices),
            n_threads=self._n_threads,
            seconds=self._seconds,
            tokens_per_second=n_evaluated / max(self._seconds, 1e-9),
        )
