"""Checkpoint → everything that runs it: text model, projector and drafter, checked to belong and load together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemma4_quant.conversion import (
    DEFAULTS,
    ConversionOptions,
    ConvertResult,
    check_out_type,
    convert_text_model,
    forecast_conversion,
)
from gemma4_quant.converters import convert_checkpoint, load_model, open_with_adapters
from gemma4_quant.converters.projector import has_encoders, open_projector
from gemma4_quant.errors import CheckpointError, ConfigError, OutputError
from gemma4_quant.formats.shards import SplitRule
from gemma4_quant.hub.cache import output_directory
from gemma4_quant.metadata import get_int, get_string
from gemma4_quant.model import Model
from gemma4_quant.progress import Progress
from gemma4_quant.projector_conversion import convert_encoders, forecast_projector
from gemma4_quant.runner.companions import Companions, try_together
from gemma4_quant.runner.preflight import refuse_what_aborts
from gemma4_quant.source import open_gguf
from gemma4_quant.writing.forecast import Forecast

_TARGET, _DRAFTER = "gemma4", "gemma4-assistant"


@dataclass(frozen=True)
class ConvertAllResult:
    """What `convert_all` wrote, and what llama.cpp can do with it. projector, drafter: None when there is none."""

    model: ConvertResult
    projector: ConvertResult | None
    drafter: ConvertResult | None
    companions: Companions


def convert_all(
    checkpoint: Path,
    directory: Path | None = None,
    out_type: str = "auto",
    *,
    drafter: Path | None = None,
    model_name: str | None = None,
    adapters: Sequence[Path] = (),
    split: SplitRule | None = None,
    exact_gelu: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ConvertAllResult:
    """Convert a checkpoint's text decoder and, where it has them, its encoders, and a drafter made for it.

    directory: where to put the files, None for the checkpoint's own; they are named as llama.cpp's converter names
    them. out_type: as for `convert`. drafter: directory of an `-assistant` checkpoint. model_name: `general.name` of
    text model and projector. adapters: as for `convert`, of both. split: as for `convert`, of the text model.
    exact_gelu: as for `convert_projector`.
    Raises CheckpointError and its kinds before anything is written for bad input and for a drafter of another model,
    OutputError when a file cannot be written, RunError when llama.cpp does not load the files together.
    """
    options = ConversionOptions(out_type, model_name, adapters, split, exact_gelu, n_threads)
    return convert_set(checkpoint, directory, drafter, options, progress)


def convert_set(
    checkpoint: Path,
    directory: Path | None = None,
    drafter: Path | None = None,
    options: ConversionOptions = DEFAULTS,
    progress: Progress | None = None,
) -> ConvertAllResult:
    """Convert as `convert_all` does."""
    check_out_type(options.out_type)
    target = _directory(checkpoint, directory)
    is_multimodal = _check_inputs(checkpoint, drafter, options)
    model = convert_text_model(checkpoint, target, options, progress)
    projector = drafted = None
    if is_multimodal:
        projector = convert_encoders(checkpoint, target, options, progress)
    if drafter is not None:
        drafted = convert_text_model(drafter, target, _for_drafter(options), progress)
    refuse_what_aborts(open_gguf(model.path))
    companions = try_together(model.path, _path(projector), _path(drafted))
    return ConvertAllResult(model, projector, drafted, companions)


def forecast_all(
    checkpoint: Path,
    directory: Path | None = None,
    drafter: Path | None = None,
    options: ConversionOptions = DEFAULTS,
) -> Forecast:
    """Say what `convert_set` would do with the same arguments; reads no weight and writes nothing."""
    target = _directory(checkpoint, directory)
    is_multimodal = _check_inputs(checkpoint, drafter, options)
    parts = [forecast_conversion(checkpoint, target, options)]
    if is_multimodal:
        parts.append(forecast_projector(checkpoint, target, options))
    if drafter is not None:
        parts.append(forecast_conversion(drafter, target, _for_drafter(options)))
    return _one_after_the_other(parts)


def _for_drafter(options: ConversionOptions) -> ConversionOptions:
    """Leave out what is meant for the text model: its name, its adapters, its shards."""
    return ConversionOptions(options.out_type, n_threads=options.n_threads)


def _one_after_the_other(parts: Sequence[Forecast]) -> Forecast:
    seconds = [part.seconds for part in parts if part.seconds is not None]
    return replace(
        parts[0],
        outputs=tuple(output for part in parts for output in part.outputs),
        disk_bytes=sum(part.disk_bytes for part in parts),
        seconds=sum(seconds) if len(seconds) == len(parts) else None,
    )


def _directory(checkpoint: Path, directory: Path | None) -> Path:
    target = directory or output_directory(checkpoint)
    if not target.is_dir():
        raise OutputError(f"{target} is not a directory; several files are written, create one for them")
    return target


def check_drafter(model: Model, drafter: Model) -> None:
    """Raise CheckpointError naming every way in which a drafter does not fit its target model.

    A drafter works on the target's hidden states and reads the keys and values of its last two layers.
    """
    if get_string(drafter.metadata, "general.architecture") != _DRAFTER:
        raise CheckpointError(f"{drafter.path} is no drafter; give the directory of an -assistant checkpoint")
    problems = [
        f"{what} is {ours} in the drafter, {theirs} in the target"
        for what, ours, theirs in _paired_sizes(model, drafter)
        if ours != theirs
    ]
    if drafter.metadata["tokenizer.ggml.tokens"] != model.metadata["tokenizer.ggml.tokens"]:
        problems.append("their vocabularies differ")
    if problems:
        raise CheckpointError(
            f"{drafter.path} is a drafter for another model than {model.path}: {'; '.join(problems)}"
        )


def _check_inputs(checkpoint: Path, drafter: Path | None, options: ConversionOptions) -> bool:
    """Look at all inputs before anything is written; tell whether there are encoders."""
    opened = open_with_adapters(checkpoint, options.adapters)
    model = convert_checkpoint(opened, model_name=options.model_name)
    if get_string(model.metadata, "general.architecture") != _TARGET:
        raise ConfigError(f"{checkpoint} holds a drafter; give its target model, and this one with --drafter")
    if drafter is not None:
        check_drafter(model, load_model(drafter))
    if not has_encoders(opened.config):
        return False
    open_projector(opened, model_name=options.model_name)
    return True


def _path(result: ConvertResult | None) -> Path | None:
    return None if result is None else result.path


def _paired_sizes(model: Model, drafter: Model) -> Iterator[tuple[str, object, object]]:
    """Yield what must be equal: its name, of the drafter, of the target."""
    ours, theirs = drafter.metadata, model.metadata
    width = get_int(ours, f"{_DRAFTER}.embedding_length_out"), get_int(theirs, f"{_TARGET}.embedding_length")
    yield "the width of the target's hidden states", *width
    for is_local, kind, suffix in ((True, "local", "_swa"), (False, "global", "")):
        key = f"attention.key_length{suffix}"
        yield f"the width of {kind} heads", get_int(ours, f"{_DRAFTER}.{key}"), get_int(theirs, f"{_TARGET}.{key}")
        heads = _key_value_heads(drafter, _DRAFTER, is_local=is_local)
        if heads is not None:
            yield f"the number of {kind} key-value heads", heads, _key_value_heads(model, _TARGET, is_local=is_local)


def _key_value_heads(model: Model, prefix: str, *, is_local: bool) -> int | None:
    """Return the key-value heads of the last local or global layer, None when there is no such layer."""
    pattern: list[bool] = model.metadata[f"{prefix}.attention.sliding_window_pattern"].decode()
    heads: Any = model.metadata[f"{prefix}.attention.head_count_kv"].decode()
    each = heads if isinstance(heads, list) else [heads] * len(pattern)
    return next((n for n, local in zip(reversed(each), reversed(pattern), strict=True) if local is is_local), None)
