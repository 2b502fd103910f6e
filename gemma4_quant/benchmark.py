"""Measuring GGUF files: size, perplexity, divergence from a reference, tokens per second."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gemma4_quant.cores import n_cores
from gemma4_quant.errors import InputError
from gemma4_quant.measuring.evaluation import EvaluationOptions, Score, evaluate, refuse_other_vocabularies
from gemma4_quant.measuring.throughput import Speed, measure_speed
from gemma4_quant.progress import Progress, SilentProgress
from gemma4_quant.runner.devices import device_text
from gemma4_quant.runner.llama_library import versions
from gemma4_quant.runner.weights import LoadedModel


@dataclass(frozen=True)
class ModelResult:
    """Measurements of one file.

    n_bytes: size of the file, or of all shards. bits_per_weight: of its tensors. score: perplexity and divergence,
    None without a text. is_reference: whether the others are compared with this file. prompt, generation: speeds,
    None when not measured.
    """

    path: Path
    n_bytes: int
    n_weights: int
    bits_per_weight: float
    is_reference: bool
    score: Score | None
    prompt: Speed | None
    generation: Speed | None


@dataclass(frozen=True)
class BenchResult:
    """Measurements of several files under the same conditions.

    text, n_ctx: what was scored, in chunks of so many tokens. device: what ran the models. versions: of this
    package and of llama.cpp.
    """

    models: tuple[ModelResult, ...]
    reference: Path | None
    text: Path | None
    n_ctx: int
    device: str
    n_threads: int
    versions: dict[str, str]


def bench(
    models: Sequence[Path],
    *,
    reference: Path | None = None,
    text: Path | None = None,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    n_prompt: int = 512,
    n_generate: int = 128,
    repetitions: int = 5,
    n_threads: int | None = None,
    n_gpu_layers: int | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure GGUF files.

    reference: file to measure divergence from; may be one of `models`. text: UTF-8 text to score; without one only
    speed is measured. n_chunks: at most so many chunks of `n_ctx` tokens; None for the whole text. n_prompt,
    n_generate: tokens of the speed tests, 0 for none. n_threads: None for all cores. n_gpu_layers: None for all
    that fit. Raises InputError and its kinds for files that cannot be used or compared, RunError when one does not
    run.
    """
    if not models:
        raise InputError("no model to measure; give at least one GGUF file")
    if reference is not None and text is None:
        raise InputError("divergence from a reference is measured on a text; give one (-f TEXT)")
    progress = progress or SilentProgress()
    with ExitStack() as stack:
        loaded = _load(stack, [*models, *([reference] if reference else [])], n_gpu_layers)
        base = None if reference is None else loaded[reference.resolve()]
        runs = [loaded[path.resolve()] for path in models]
        scores = _scores(runs, base, text, EvaluationOptions(n_ctx, n_chunks, n_threads), progress)
        speeds = {
            id(model): measure_speed(
                model,
                progress,
                n_prompt=n_prompt,
                n_generate=n_generate,
                repetitions=repetitions,
                n_threads=n_threads,
            )
            for model in dict.fromkeys(runs)
        }
        results = tuple(
            _result(path, model, score, speeds[id(model)], is_reference=model is base)
            for path, model, score in zip(models, runs, scores, strict=True)
        )
    return BenchResult(
        models=results,
        reference=reference,
        text=text,
        n_ctx=n_ctx,
        device=device_text(n_gpu_layers),
        n_threads=n_threads or n_cores(),
        versions={"gemma4-quant": _own_version(), **versions()},
    )


def _load(stack: ExitStack, paths: Sequence[Path], n_gpu_layers: int | None) -> dict[Path, LoadedModel]:
    """Load each file once, however often and under whatever name it is given."""
    loaded: dict[Path, LoadedModel] = {}
    for path in paths:
        if path.resolve() not in loaded:
            loaded[path.resolve()] = stack.enter_context(LoadedModel(path, n_gpu_layers=n_gpu_layers))
    return loaded


def _scores(
    models: list[LoadedModel],
    reference: LoadedModel | None,
    text: Path | None,
    options: EvaluationOptions,
    progress: Progress,
) -> list[Score] | list[None]:
    if text is None:
        return [None] * len(models)
    if reference is None:
        # Nothing is compared, so the models may have different vocabularies, and chunks of their own.
        return [evaluate([model], text, options, progress)[0] for model in models]
    refuse_other_vocabularies([reference, *models])
    distinct = list(dict.fromkeys(models))
    scores = evaluate(distinct, text, options, progress, reference=reference)
    return [scores[distinct.index(model)] for model in models]


def _result(
    path: Path,
    model: LoadedModel,
    score: Score | None,
    speeds: tuple[Speed | None, Speed | None],
    *,
    is_reference: bool,
) -> ModelResult:
    n_weights, tensors = model.file.n_weights, model.file.tensors
    return ModelResult(
        path=path,
        n_bytes=sum({file.path: file.n_bytes for tensor in tensors for file in tensor.source.files}.values()),
        n_weights=n_weights,
        bits_per_weight=8 * sum(tensor.n_bytes for tensor in tensors) / n_weights,
        is_reference=is_reference,
        score=score,
        prompt=speeds[0],
        generation=speeds[1],
    )


def _own_version() -> str:
    import gemma4_quant

    return gemma4_quant.__version__
