"""A bench result with something in every field, for tests of what stores and shows results."""

from pathlib import Path

from gemma4_quant.ggml import GgmlType
from gemma4_quant.measuring.results import (
    BenchResult,
    CacheCell,
    CacheMatrix,
    Conditions,
    Distribution,
    Divergence,
    DomainScore,
    Estimate,
    FileFact,
    ModelFile,
    ModelResult,
    PositionBin,
    ReferenceKind,
    ReferenceUsed,
    Score,
    TextScore,
    TextUsed,
    TokenPair,
    TypeShare,
)
from gemma4_quant.measuring.speed import LlamaBuild, ModelSpeeds, speed_of
from gemma4_quant.measuring.speed_plan import SpeedSettings, SpeedTest

_PERCENTILES = (
    "percentile_0_1",
    "percentile_1",
    "percentile_5",
    "percentile_10",
    "percentile_25",
    "median",
    "percentile_75",
    "percentile_90",
    "percentile_95",
    "percentile_99",
    "percentile_99_9",
)


def estimate(value: float) -> Estimate:
    return Estimate(value, 0.02 * abs(value), value - 0.04 * abs(value), value + 0.04 * abs(value))


def distribution(scale: float) -> Distribution:
    middle = {name: estimate(scale * (i + 1) ** 2) for i, name in enumerate(_PERCENTILES)}
    return Distribution(
        mean=estimate(40 * scale), minimum=Estimate(0.5 * scale), maximum=Estimate(300 * scale), **middle
    )


def divergence(scale: float) -> Divergence:
    return Divergence(
        kl=distribution(scale),
        delta_p=distribution(0.1 * scale),
        delta_p_rms=estimate(6 * scale),
        same_top=estimate(1 - 5 * scale),
        reference_perplexity=estimate(10.0),
        log_perplexity_ratio=estimate(scale),
        perplexity_ratio=estimate(1 + scale),
        perplexity_difference=estimate(10 * scale),
        nll_correlation=0.998,
    )


def text_score(scale: float | None, n_documents: int = 8) -> TextScore:
    return TextScore(
        n_documents=n_documents,
        n_chunks=2 * n_documents,
        n_positions=500 * n_documents,
        perplexity=estimate(10.0 + 10 * (scale or 0.0)),
        divergence=None if scale is None else divergence(scale),
    )


def score(scale: float | None) -> Score:
    bins = (
        PositionBin(0, 127, 800, estimate(11.0), None, None),
        PositionBin(128, 510, 7200, estimate(9.9), None, None),
    )
    if scale is not None:
        bins = tuple(
            PositionBin(b.first, b.last, b.n_positions, b.perplexity, estimate(scale), estimate(0.98)) for b in bins
        )
    pairs = () if scale is None else tuple(TokenPair(i / 50, min(1.0, i / 50 + scale)) for i in range(50))
    return Score(
        overall=text_score(scale, 16),
        domains=(DomainScore("code", text_score(scale)), DomainScore("vietnamese", text_score(scale))),
        by_position=bins,
        sample=pairs,
    )


def model_file(name: str, n_bytes: int) -> ModelFile:
    return ModelFile(
        path=Path("models") / name,
        name=name.removesuffix(".gguf"),
        files=(FileFact(name, n_bytes, "ab" * 32),),
        n_bytes=n_bytes,
        n_weights=1_000_000,
        bits_per_weight=8e-6 * n_bytes,
        architecture="gemma4",
        file_type=name.removesuffix(".gguf").split("-")[-1],
        types=(TypeShare("Q4_K", 20, 900_000, n_bytes - 1000), TypeShare("F32", 30, 100_000, 1000)),
        is_qat=False,
    )


def speeds(path: Path, fastest: int) -> ModelSpeeds:
    settings = SpeedSettings()
    tests = (SpeedTest(512, 0), SpeedTest(0, 128), SpeedTest(0, 128, 4096))
    return ModelSpeeds(
        path=path,
        model_type="gemma4 E2B Q4_K - Medium",
        model_bytes=600_000,
        n_weights=1_000_000,
        n_threads=2,
        build=LlamaBuild("unknown", 0, "A CPU", "", "CPU"),
        speeds=tuple(
            speed_of(test, settings, (fastest, fastest + fastest // 50), started="2026-01-01T00:00:00Z")
            for test in tests
        ),
    )


def cache_matrix() -> CacheMatrix:
    return CacheMatrix(
        n_ctx=4096,
        n_chunks=4,
        cells=tuple(
            CacheCell(key, value, 1 << 20, text_score(1e-5 * (1 + i)))
            for i, (key, value) in enumerate((("f16", "f16"), ("q8_0", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0")))
        ),
    )


def model_result(name: str, n_bytes: int, scale: float | None) -> ModelResult:
    return ModelResult(
        file=model_file(name, n_bytes),
        is_reference=scale is None,
        score=score(scale),
        cache=cache_matrix(),
        speeds=speeds(Path("models") / name, 1_000 * n_bytes),
        peak_bytes=3 * n_bytes,
        failure=None,
    )


def full_result() -> BenchResult:
    """Return results of a reference and two candidates, the second of which failed early."""
    reference = model_result("example-BF16.gguf", 2_000_000, None)
    failed = ModelResult(model_file("broken-Q2_K.gguf", 300_000), False, None, None, None, None, "it does not load")
    return BenchResult(
        models=(
            reference,
            model_result("example-Q8_0.gguf", 1_060_000, 1e-4),
            model_result("example-Q4_K_M.gguf", 600_000, 2e-3),
            failed,
        ),
        reference=ReferenceUsed(reference.file.path, ReferenceKind.MODEL, reference.file, None, None, ()),
        texts=(
            TextUsed("code", "texts/a.py", "cd" * 32, 8, 8192, 16, 4000),
            TextUsed("vietnamese", "built in", "ef" * 32, 8, 8192, 16, 4000),
        ),
        conditions=Conditions(
            framing="turn",
            n_ctx=512,
            stride=None,
            key_type=GgmlType.F16.name.lower(),
            value_type=GgmlType.F16.name.lower(),
            confidence=0.95,
            resamples=2000,
            seed=0,
            device="CPU (A CPU)",
            n_threads=2,
            n_gpu_layers=0,
            flash_attention=None,
            versions={"gemma4-quant": "0.1.0", "llama-cpp-python": "0.3.36"},
            started="2026-01-01T00:00:00Z",
            elapsed_s=12.5,
            command=("gemma4-quant", "bench", "models/example-Q8_0.gguf"),
        ),
        warnings=("a warning",),
    )
