"""Quality as flat rows for programs: one for each model and domain, and for each pair of KV cache types compared.

The fields are the same in CSV, JSON lines and SQL.

Names are llama-bench's where it has the field. Numbers are in plain units: bytes, nat, shares of 1, tokens a second.
"""

from collections.abc import Iterator
from math import isfinite
from typing import TypeAlias

from gemma4_quant.measuring.results import BenchResult, CacheCell, Estimate, ModelResult, TextScore
from gemma4_quant.report.measures import MEASURES
from gemma4_quant.report.speeds import MainTests, main_tests, speed_named

Value: TypeAlias = str | int | float | None
Fields: TypeAlias = dict[str, Value]

ALL_DOMAINS = "all"
"""What the domain of a row over all texts is called."""

_FLASH_ATTENTION = {None: -1, False: 0, True: 1}  # as in llama-bench's rows


def quality_rows(result: BenchResult) -> Iterator[Fields]:
    """Yield a row for each model over all texts, for each of its domains where there are several, for each cache.

    Divergence in a row whose `kind` is `cache` is that from the same model with its matrix' first pair of types.
    """
    tests = main_tests(result)
    for model in result.models:
        yield _row(result, model, tests, ALL_DOMAINS, None if model.score is None else model.score.overall)
        if model.score is not None and len(result.texts) > 1:
            for each in model.score.domains:
                yield _row(result, model, tests, each.domain, each.score)
        if model.cache is not None:
            for cell in model.cache.cells:
                yield _cache_row(result, model, tests, model.cache.n_ctx, cell)


def _cache_row(result: BenchResult, model: ModelResult, tests: MainTests, n_ctx: int, cell: CacheCell) -> Fields:
    return {
        **_row(result, model, tests, ALL_DOMAINS, cell.score),
        "kind": "cache",
        "n_ctx": n_ctx,
        "type_k": cell.key_type,
        "type_v": cell.value_type,
        "cache_bytes": cell.cache_bytes,
    }


def field_types() -> dict[str, type]:
    """Return each field's name and type, in order; every field may be missing (None)."""
    measured = {f"{measure.key}{end}": float for measure in MEASURES for end in _ENDS}
    return {**_MODEL_TYPES, **_CONDITION_TYPES, **_TEXT_TYPES, **measured, **_RUN_TYPES}


_ENDS = ("", "_error", "_low", "_high")
_MODEL_TYPES: dict[str, type] = {
    "kind": str,
    "model_filename": str,
    "model_name": str,
    "model_ftype": str,
    "model_size": int,
    "model_n_params": int,
    "bits_per_weight": float,
    "model_sha256": str,
    "is_reference": int,
    "reference": str,
    "reference_sha256": str,
}
_CONDITION_TYPES: dict[str, type] = {
    "framing": str,
    "n_ctx": int,
    "stride": int,
    "type_k": str,
    "type_v": str,
    "cache_bytes": int,
    "flash_attn": int,
    "devices": str,
    "n_threads": int,
    "n_gpu_layers": int,
    "confidence": float,
    "versions": str,
    "test_time": str,
}
_TEXT_TYPES: dict[str, type] = {
    "domain": str,
    "text_sha256": str,
    "n_documents": int,
    "n_chunks": int,
    "n_positions": int,
}
_RUN_TYPES: dict[str, type] = {
    "prompt_test": str,
    "prompt_avg_ts": float,
    "prompt_stddev_ts": float,
    "gen_test": str,
    "gen_avg_ts": float,
    "gen_stddev_ts": float,
    "peak_bytes": int,
    "failure": str,
}


def _row(result: BenchResult, model: ModelResult, tests: MainTests, domain: str, score: TextScore | None) -> Fields:
    return {
        **_model_fields(result, model),
        **_condition_fields(result),
        **_text_fields(result, domain, score),
        **_measured_fields(score),
        **_speed_fields(model, "prompt", tests.prompt),
        **_speed_fields(model, "gen", tests.generation),
        "peak_bytes": model.peak_bytes,
        "failure": model.failure,
    }


def _model_fields(result: BenchResult, model: ModelResult) -> Fields:
    file, reference = model.file, result.reference
    of_reference = () if reference is None or reference.model is None else reference.model.files
    return {
        "kind": "text",
        "model_filename": str(file.path),
        "model_name": file.name,
        "model_ftype": file.file_type,
        "model_size": file.n_bytes,
        "model_n_params": file.n_weights,
        "bits_per_weight": _finite(file.bits_per_weight),
        "model_sha256": "+".join(fact.sha256 for fact in file.files),
        "is_reference": int(model.is_reference),
        "reference": None if reference is None else str(reference.path),
        "reference_sha256": "+".join(fact.sha256 for fact in of_reference) or None,
    }


def _condition_fields(result: BenchResult) -> Fields:
    conditions = result.conditions
    return {
        "framing": conditions.framing,
        "n_ctx": conditions.n_ctx,
        "stride": conditions.stride,
        "type_k": conditions.key_type,
        "type_v": conditions.value_type,
        "cache_bytes": None,
        "flash_attn": _FLASH_ATTENTION[conditions.flash_attention],
        "devices": conditions.device,
        "n_threads": conditions.n_threads,
        "n_gpu_layers": conditions.n_gpu_layers,
        "confidence": conditions.confidence,
        "versions": ", ".join(f"{name} {version}" for name, version in conditions.versions.items()),
        "test_time": conditions.started,
    }


def _text_fields(result: BenchResult, domain: str, score: TextScore | None) -> Fields:
    hashes = [text.sha256 for text in result.texts if domain in (text.domain, ALL_DOMAINS)]
    return {
        "domain": None if score is None else domain,
        "text_sha256": None if score is None else "+".join(hashes),
        "n_documents": None if score is None else score.n_documents,
        "n_chunks": None if score is None else score.n_chunks,
        "n_positions": None if score is None else score.n_positions,
    }


def _measured_fields(score: TextScore | None) -> Fields:
    found: Fields = {}
    for measure in MEASURES:
        estimate = None if score is None else measure.of(score)
        found.update(zip((f"{measure.key}{end}" for end in _ENDS), _numbers(estimate), strict=True))
    return found


def _numbers(estimate: Estimate | None) -> tuple[float | None, ...]:
    if estimate is None:
        return (None, None, None, None)
    return tuple(map(_finite, (estimate.value, estimate.error, estimate.low, estimate.high)))


def _speed_fields(model: ModelResult, kind: str, test: str | None) -> Fields:
    speed = speed_named(model, test)
    return {
        f"{kind}_test": None if speed is None else speed.test,
        f"{kind}_avg_ts": None if speed is None else _finite(speed.tokens_per_second),
        f"{kind}_stddev_ts": None if speed is None else _finite(speed.deviation),
    }


def _finite(value: float | None) -> float | None:
    """Return the value, None for what is no number: JSON and SQL cannot say it."""
    return value if value is not None and isfinite(value) else None
