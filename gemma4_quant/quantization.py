"""Checkpoint or GGUF → GGUF with block types: the pipeline with a recipe of blocks."""

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from gemma4_quant.calibration.importance import read_importance
from gemma4_quant.codecs.base import Effort
from gemma4_quant.converters import default_file_name
from gemma4_quant.destination import input_files
from gemma4_quant.ggml import FileType
from gemma4_quant.model import Model
from gemma4_quant.progress import Progress
from gemma4_quant.quantize_plan import quantize_plan
from gemma4_quant.recipe import Recipe
from gemma4_quant.source import open_model
from gemma4_quant.writer import write_gguf


@dataclass(frozen=True)
class QuantizeResult:
    """What `quantize` wrote.

    n_bytes: size of the file. bits_per_weight: of the tensor data, as llama-quantize counts it.
    types: how many tensors have each GGML type. fallbacks: tensors whose rows do not fit the wanted type.
    without_importance: quantized tensors that the importance file says nothing of; empty without such a file.
    """

    path: Path
    file_type: str
    n_bytes: int
    n_weights: int
    bits_per_weight: float
    types: dict[str, int]
    fallbacks: dict[str, str]
    without_importance: tuple[str, ...]
    seconds: float


def quantize(
    source: Path,
    output: Path | None = None,
    file_type: FileType = FileType.Q4_K_M,
    *,
    importance: Path | None = None,
    recipe: Recipe | None = None,
    effort: Effort = Effort.BALANCED,
    allow_requantize: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Quantize a GGUF file or a checkpoint directory.

    output: the file to write; None puts it beside the source, named after the type.
    importance: an importance file of the same model (`calibrate` makes one). recipe: overrides beyond the file type,
    whose own file type then wins. Raises InputError and its kinds for bad input, OutputError when the file
    cannot be written.
    """
    started = time.monotonic()
    recipe = replace(recipe or Recipe(file_type), has_importance=importance is not None)
    model = open_model(source)
    statistics = None if importance is None else read_importance(importance)
    prepared = quantize_plan(model, recipe, statistics, importance, allow_requantize=allow_requantize)
    plan = prepared.plan
    target = output or _default_output(source, model, recipe.file_type)
    name = recipe.file_type.name
    write_gguf(
        plan,
        target,
        effort=effort,
        n_threads=n_threads,
        progress=progress,
        label=f"quantize to {name}",
        inputs=[*input_files(source), *([importance] if importance else [])],
    )
    return QuantizeResult(
        path=target,
        file_type=name.lower(),
        n_bytes=plan.n_bytes,
        n_weights=model.n_weights,
        bits_per_weight=sum(planned.n_bytes for planned in plan.tensors) * 8 / model.n_weights,
        types=dict(Counter(planned.type.name for planned in plan.tensors)),
        fallbacks={c.name: f"{c.wanted.name} → {c.type.name}" for c in prepared.choices if c.fallback},
        without_importance=prepared.without_importance,
        seconds=time.monotonic() - started,
    )


def _default_output(source: Path, model: Model, file_type: FileType) -> Path:
    """Name the output after its source, the type in place of the source's."""
    if source.is_dir():
        return source / default_file_name(model.metadata, file_type)
    stem = source.stem
    for known in sorted(FileType, key=lambda kind: -len(kind.name)):
        for suffix in (f"-{known.name}", f".{known.name}"):
            if stem.upper().endswith(suffix):
                return source.with_name(f"{stem[: -len(suffix)]}{suffix[0]}{file_type.name}.gguf")
    return source.with_name(f"{stem}-{file_type.name}.gguf")
