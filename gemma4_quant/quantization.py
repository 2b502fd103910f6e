"""Checkpoint or GGUF → GGUF with block types: the pipeline with recipes of blocks."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gemma4_quant.calibration.importance import Importance, read_importance
from gemma4_quant.calibration.moments import read_moments
from gemma4_quant.codecs.base import Effort
from gemma4_quant.converters import default_file_name
from gemma4_quant.errors import InputError, naming
from gemma4_quant.feedback.summary import FeedbackReport
from gemma4_quant.formats.shards import KeptSplit, SplitRule, unsplit_name
from gemma4_quant.ggml import FileType
from gemma4_quant.hub.cache import output_directory
from gemma4_quant.model import Model
from gemma4_quant.progress import Progress
from gemma4_quant.quantize_plan import QuantizePlan, SecondMoments, quantize_plan
from gemma4_quant.recipes.gemma_defaults import gemma_recipe
from gemma4_quant.recipes.qat import GridReport, report_grids
from gemma4_quant.recipes.recipe import Reason, Recipe
from gemma4_quant.recipes.recipe_file import save_recipe
from gemma4_quant.source import open_model
from gemma4_quant.writing.destination import input_files, with_type
from gemma4_quant.writing.forecast import Decision, Forecast, forecast
from gemma4_quant.writing.writer import Job, write_ggufs


@dataclass(frozen=True)
class QuantizeResult:
    """What `quantize` wrote.

    path: the file, or the first of `files`, which llama.cpp loads, when the model is split. n_bytes: of all files.
    bits_per_weight: of the tensor data, as llama-quantize counts it. types: how many tensors have each GGML type.
    fallbacks: tensors whose rows do not fit the wanted type. without_importance: quantized tensors that the
    importance file says nothing of; empty without such a file. lent_importance: how many experts of a weight saw too
    little text and count as average ones, as `1 of 8`. floors: tensors that the recipe's floors gave a larger type.
    padding: feed-forward widths that were padded, as `704 → 768` by metadata key. qat: tensors that lie on a trained
    grid. feedback: what error feedback did, None without second moments. seconds: of the whole run, other file types
    included.
    """

    path: Path
    file_type: str
    n_bytes: int
    n_weights: int
    bits_per_weight: float
    types: dict[str, int]
    fallbacks: dict[str, str]
    without_importance: tuple[str, ...]
    lent_importance: dict[str, str]
    floors: dict[str, str]
    padding: dict[str, str]
    qat: GridReport
    feedback: FeedbackReport | None
    seconds: float
    files: tuple[Path, ...]


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize, whatever the source and the file types.

    importance: an importance file of the same model (`calibrate` makes one). moments: a file of its second moments
    (`calibrate --hessian`), to encode with error feedback; it serves as importance too where no such file is given.
    adapters: directories of LoRA adapters
    to merge into a checkpoint. recipe: decides the types; gemma_defaults.gemma_recipe of the file type when None.
    split: such as shards.SplitLimits. keep_split: split as the source is. recipe_file: where to save the recipe, with
    the type of every tensor; `{ftype}` in its name stands for the file type. n_threads: None for all cores.
    """

    importance: Path | None = None
    moments: Path | None = None
    adapters: Sequence[Path] = ()
    recipe: Recipe | None = None
    effort: Effort = Effort.BALANCED
    allow_requantize: bool = False
    split: SplitRule | None = None
    keep_split: bool = False
    recipe_file: Path | None = None
    n_threads: int | None = None


_DEFAULTS = QuantizeOptions()


def quantize(
    source: Path,
    output: Path | None = None,
    file_type: FileType = FileType.Q4_K_M,
    *,
    importance: Path | None = None,
    moments: Path | None = None,
    adapters: Sequence[Path] = (),
    recipe: Recipe | None = None,
    effort: Effort = Effort.BALANCED,
    allow_requantize: bool = False,
    split: SplitRule | None = None,
    keep_split: bool = False,
    recipe_file: Path | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Quantize a GGUF file or a checkpoint directory.

    output: the file to write; `{ftype}` in its name stands for the type. None puts it beside the source, named after
    the type. recipe: its own file type counts. The other options: see QuantizeOptions. Raises InputError and its
    kinds for bad input, OutputError when the file cannot be written.
    """
    options = QuantizeOptions(
        importance=importance,
        moments=moments,
        adapters=adapters,
        recipe=recipe,
        effort=effort,
        allow_requantize=allow_requantize,
        split=split,
        keep_split=keep_split,
        recipe_file=recipe_file,
        n_threads=n_threads,
    )
    file_types = [recipe.file_type if recipe else file_type]
    return quantize_each(source, output, file_types, options, progress)[0]


def quantize_each(
    source: Path,
    output: Path | None,
    file_types: Sequence[FileType],
    options: QuantizeOptions = _DEFAULTS,
    progress: Progress | None = None,
) -> list[QuantizeResult]:
    """Quantize to several file types in one run that reads and decodes the source once.

    Every file has the bytes that `quantize` gives it alone. The recipe counts for all of them, its file type does
    not. output: see `quantize`; a file name must say {ftype} when there are several types.
    """
    started = time.monotonic()
    prepared = prepare(source, output, file_types, options)
    write_ggufs(
        [each.job for each in prepared],
        effort=options.effort,
        n_threads=options.n_threads,
        progress=progress,
        label=f"quantize to {', '.join(each.file_type.name for each in prepared)}",
        inputs=_inputs(source, options),
    )
    return [_result(each, time.monotonic() - started) for each in prepared]


def forecast_quantization(
    source: Path, output: Path | None, file_types: Sequence[FileType], options: QuantizeOptions = _DEFAULTS
) -> Forecast:
    """Say what `quantize_each` would do with the same arguments; writes nothing but the recipe file."""
    prepared = prepare(source, output, file_types, options)
    return forecast(
        {each.file_type.name.lower(): each.job for each in prepared},
        {
            each.file_type.name.lower(): {c.name: Decision(c.reason, c.wanted) for c in each.decided.choices}
            for each in prepared
        },
        effort=options.effort,
        inputs=_inputs(source, options),
        n_threads=options.n_threads,
    )


def _inputs(source: Path, options: QuantizeOptions) -> list[Path]:
    return [*input_files(source), *(path for path in (options.importance, options.moments) if path)]


@dataclass(frozen=True)
class Prepared:
    """A file type with its plan, before anything is written."""

    file_type: FileType
    decided: QuantizePlan
    job: Job


def prepare(
    source: Path, output: Path | None, file_types: Sequence[FileType], options: QuantizeOptions = _DEFAULTS
) -> list[Prepared]:
    """Plan the file of each type (once each) and name it; reads a few rows of weights. See quantize_each."""
    kinds = dict.fromkeys(file_types)
    saved = options.recipe_file
    if saved is not None and len({with_type(saved, kind.name) for kind in kinds}) < len(kinds):
        raise InputError(f"{saved} cannot be the recipe of each file type; put {{ftype}} into its name")
    model = open_model(source, adapters=options.adapters)
    second_moments = None if options.moments is None else SecondMoments(read_moments(options.moments))
    statistics = _importance(options, second_moments)
    split = KeptSplit(model.shard_sizes) if options.keep_split else options.split
    prepared = []
    for file_type in kinds:
        own = _recipe_of(options, file_type, statistics)
        with naming(source):
            decided = quantize_plan(
                model,
                own,
                statistics,
                options.importance or options.moments,
                second_moments=second_moments,
                allow_requantize=options.allow_requantize,
                split=split,
            )
        if saved is not None:
            save_recipe(with_type(saved, file_type.name), own, decided.choices)
        prepared.append(
            Prepared(file_type, decided, Job(decided.plan, _output_path(source, output, model, file_type)))
        )
    return prepared


def _importance(options: QuantizeOptions, second_moments: SecondMoments | None) -> Importance | None:
    if options.importance is not None:
        return read_importance(options.importance)
    return second_moments.file.importance() if second_moments else None


def _recipe_of(options: QuantizeOptions, file_type: FileType, statistics: Importance | None) -> Recipe:
    own = replace(options.recipe or gemma_recipe(file_type), file_type=file_type)
    if options.keep_split and own.prune_layers:
        raise InputError("--keep-split keeps the tensors of every file, --prune-layers takes some away; choose one")
    used = statistics is not None and any(own.uses_importance_of(name) for name in statistics.names)
    return replace(own, has_importance=used)


def _result(prepared: Prepared, seconds: float) -> QuantizeResult:
    decided, tensors = prepared.decided, prepared.decided.plan.tensors
    n_weights = sum(planned.tensor.n_weights for planned in tensors)
    return QuantizeResult(
        path=prepared.job.paths[0],
        file_type=prepared.file_type.name.lower(),
        n_bytes=decided.plan.n_bytes,
        n_weights=n_weights,
        bits_per_weight=sum(planned.n_bytes for planned in tensors) * 8 / n_weights,
        types=dict(Counter(planned.type.name for planned in tensors)),
        fallbacks={c.name: f"{c.wanted.name} → {c.type.name}" for c in decided.choices if c.fallback},
        without_importance=decided.without_importance,
        lent_importance=decided.lent_importance,
        floors={c.name: c.type.name for c in decided.choices if c.reason is Reason.FLOOR},
        padding=decided.padding,
        qat=report_grids(decided.grids),
        feedback=_feedback_report(decided),
        seconds=seconds,
        files=prepared.job.paths,
    )


def _feedback_report(decided: QuantizePlan) -> FeedbackReport | None:
    if decided.feedback is None:
        return None
    summaries = (encoder.summary() for encoder in decided.feedback.values())
    return FeedbackReport(tuple(each for each in summaries if each is not None))


def _output_path(source: Path, output: Path | None, model: Model, file_type: FileType) -> Path:
    if output is None:
        return _default_output(source, model, file_type)
    return with_type(output, file_type.name)


def _default_output(source: Path, model: Model, file_type: FileType) -> Path:
    """Name the output after its source, the type in place of the source's."""
    if source.is_dir():
        return output_directory(source) / default_file_name(model.metadata, file_type)
    stem = Path(unsplit_name(source.name)).stem
    for known in sorted(FileType, key=lambda kind: -len(kind.name)):
        for suffix in (f"-{known.name}", f".{known.name}"):
            if stem.upper().endswith(suffix):
                return source.with_name(f"{stem[: -len(suffix)]}{suffix[0]}{file_type.name}.gguf")
    return source.with_name(f"{stem}-{file_type.name}.gguf")
