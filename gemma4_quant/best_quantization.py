"""The best file of a size in one run: a 16-bit file to run the model, second moments from it, error feedback."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gemma4_quant import __version__
from gemma4_quant.best_forecast import BestForecast, forecast_best
from gemma4_quant.calibration.collect import CalibrationOptions
from gemma4_quant.calibration.collect_moments import MomentsResult, calibrate_moments
from gemma4_quant.calibration.moments_plan import DEFAULT_MEMORY_BYTES
from gemma4_quant.conversion import ConversionOptions, convert_text_model
from gemma4_quant.errors import InputError, OutputError
from gemma4_quant.ggml import FileType
from gemma4_quant.model import Model
from gemma4_quant.progress import Progress
from gemma4_quant.quantization import QuantizeOptions, QuantizeResult, prepare, quantize_each
from gemma4_quant.source import open_model
from gemma4_quant.texts.documents import Chat, Document
from gemma4_quant.writing.destination import cannot_write

_RUNNABLE = "model-BF16.gguf"
_MOMENTS = "moments.gguf"
_DONE = "moments.done"

_BYTES_PER_TOKEN = 3
"""Of text, to guess with; Gemma's tokens have 3 to 5 bytes in most languages."""


@dataclass(frozen=True)
class BestOptions:
    """How to gather what error feedback needs.

    texts: to calibrate with, see calibrate; the built-in corpus when there are none. calibration: how. memory_bytes:
    for second moments. keep_work: leave the folder with the 16-bit file and the moments, for further runs.
    """

    texts: Sequence[Path] = ()
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    keep_work: bool = False


_DEFAULTS = BestOptions()


@dataclass(frozen=True)
class BestResult:
    """What was written, and from which second moments.

    moments: how they were gathered; None where an interrupted run had done it. work: the folder of intermediate files
    if it was kept.
    """

    files: tuple[QuantizeResult, ...]
    moments: MomentsResult | None
    work: Path | None


def quantize_best(
    source: Path,
    output: Path | None,
    file_types: Sequence[FileType],
    options: QuantizeOptions | None = None,
    best: BestOptions = _DEFAULTS,
    progress: Progress | None = None,
) -> BestResult:
    """Quantize with error feedback, gathering what it needs first.

    options: of the quantization; its importance and moments must be None. Intermediate files are in a folder beside
    the first output, `NAME.work`; a run that is interrupted goes on there. Raises what convert, calibrate and
    quantize do.
    """
    options = options or QuantizeOptions()
    work = _work_folder(source, output, file_types, options)
    model = open_model(source, adapters=options.adapters)
    try:
        work.mkdir(exist_ok=True)
        digest = _digest(model, best)
        moments_path, done = work / _MOMENTS, work / _DONE
        gathered = None
        if not (moments_path.is_file() and done.is_file() and done.read_text(encoding="ascii") == digest):
            runnable = _runnable(source, work, options, progress)
            gathered = calibrate_moments(
                runnable,
                best.texts,
                moments_path,
                options=replace(best.calibration, n_threads=options.n_threads),
                memory_bytes=best.memory_bytes,
                progress=progress,
            )
            done.write_text(digest, encoding="ascii")
    except OSError as error:
        raise cannot_write(work, error) from error
    files = quantize_each(source, output, file_types, replace(options, moments=moments_path), progress)
    if not best.keep_work:
        shutil.rmtree(work, ignore_errors=True)
    return BestResult(tuple(files), gathered, work if best.keep_work else None)


def forecast_quantize_best(
    source: Path,
    output: Path | None,
    file_types: Sequence[FileType],
    options: QuantizeOptions,
    best: BestOptions = _DEFAULTS,
) -> BestForecast:
    """Say what `quantize_best` would take with the same arguments; runs nothing, writes nothing."""
    _work_folder(source, output, file_types, options)
    prepared = prepare(source, output, file_types, options)
    return forecast_best(
        open_model(source, adapters=options.adapters),
        [each.job for each in prepared],
        n_tokens=_n_tokens(best),
        memory_bytes=best.memory_bytes,
        effort=options.effort,
        n_threads=options.n_threads,
    )


def _n_tokens(best: BestOptions) -> int:
    """Guess how many tokens will be run: the text cannot be cut before there is a model to cut it with."""
    if best.texts:
        n_bytes = sum(path.stat().st_size for text in best.texts for path in _files(text))
        found = n_bytes // _BYTES_PER_TOKEN
    else:
        from gemma4_quant.calibration.corpus import corpus_documents

        found = sum(_n_bytes(document) for document in corpus_documents()) // _BYTES_PER_TOKEN
    n_chunks = best.calibration.n_chunks
    return found if n_chunks is None else min(found, n_chunks * best.calibration.n_ctx)


def _n_bytes(document: Document) -> int:
    content = document.content
    if isinstance(content, str):
        return len(content.encode())
    if isinstance(content, Chat):
        return sum(len(str(message.get("content")).encode()) for message in content.messages)
    return len(content.text.encode())


def _files(text: Path) -> list[Path]:
    if not text.exists():
        raise InputError(f"{text} does not exist; give a text, a file of chats or a directory of both")
    return [path for path in sorted(text.rglob("*")) if path.is_file()] if text.is_dir() else [text]


def _work_folder(source: Path, output: Path | None, file_types: Sequence[FileType], options: QuantizeOptions) -> Path:
    """Name the folder of intermediate files; raises InputError and OutputError for what would stop the run."""
    if options.importance is not None or options.moments is not None:
        raise InputError("--best gathers its own statistics; leave out --imatrix and --calibration")
    first = prepare(source, output, file_types[:1], options)[0].job.paths[0]
    work = first.with_name(f"{first.name}.work")
    if work.exists() and not work.is_dir():
        raise OutputError(f"{work} is in the way of a folder for intermediate files; move it elsewhere")
    return work


def _runnable(source: Path, work: Path, options: QuantizeOptions, progress: Progress | None) -> Path:
    """Return a GGUF file of the model that llama.cpp can run, made if the source is a checkpoint."""
    if not source.is_dir():
        return source
    path = work / _RUNNABLE
    converting = ConversionOptions("bf16", adapters=options.adapters, n_threads=options.n_threads)
    return convert_text_model(source, path, converting, progress).path


def _digest(model: Model, best: BestOptions) -> str:
    """Return what tells the moments of one run from those of another."""
    state = hashlib.sha256(f"{__version__} {best.calibration} {best.memory_bytes}\n".encode())
    for tensor in model.tensors:
        state.update(f"{tensor.name} {tensor.shape} {tensor.type.name} ".encode() + tensor.source.identity)
    for path in (path for text in best.texts for path in _files(text)):
        state.update(f"{path} ".encode(errors="replace") + path.read_bytes())
    return state.hexdigest()
