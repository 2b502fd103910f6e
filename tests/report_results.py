"""Results of a bench made up for tests of reports: any number of models, hostile names, missing parts."""

import hashlib
import math
import random
from dataclasses import replace
from pathlib import Path

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

QUANTIZATIONS = (
    ("Q8_0", 8.51, 0.00021), ("Q6_K", 6.57, 0.00071), ("Q5_K_M", 5.71, 0.0019), ("Q5_K_S", 5.55, 0.0024),
    ("Q4_K_M", 4.88, 0.0061), ("Q4_K_S", 4.61, 0.0083), ("IQ4_XS", 4.27, 0.0092), ("Q4_0", 4.58, 0.0132),
    ("IQ3_M", 3.68, 0.031), ("Q3_K_M", 3.93, 0.029), ("Q3_K_S", 3.51, 0.058),
    ("IQ2_M", 2.73, 0.17), ("Q2_K", 2.98, 0.13),
)  # fmt: skip
"""Types, their bits per weight, and divergences of the size that such files have."""

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "</style><style>body{display:none}</style>",
    "</title></svg><img src=http://example.invalid/x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\u202c\u2066right\u2069",
    "a\x00b\x1b[31mc\x07\ufffe",
    "| a | b |\n---\n- [x](javascript:alert(1)) `code` <b>&amp;",
    "'; DROP TABLE quality; --",
    "--- \ntags: [evil]\n---",
    '=HYPERLINK("http://example.invalid","x")',
    "شبكة עברית 量子化モデル",
    "n" * 5000,
)
"""What a file's name or metadata may say to break out of a page, a table, a query, or a terminal."""

COMMAND = ("gemma4-quant", "bench", "E2B-Q4_K_M.gguf", "--reference", "E2B BF16.gguf", "--report", "report.html")

DOMAINS = ("languages", "code", "mathematics", "tools", "long document")


def estimate(value: float, share: float = 0.03, *, with_interval: bool = True) -> Estimate:
    """Make an estimate with an error of a share of its value, and an interval."""
    half = 2 * share * abs(value)
    return Estimate(
        value, share * abs(value), value - half if with_interval else None, value + half if with_interval else None
    )


def text_score(
    kl: float | None, perplexity: float = 9.2, *, n_documents: int = 24, with_interval: bool = True
) -> TextScore:
    """Make a score whose divergence has this mean; None for none."""

    def est(value: float, share: float = 0.03) -> Estimate:
        return estimate(value, share, with_interval=with_interval)

    divergence = None
    if kl is not None:
        quantiles = [
            est(kl * factor, 0.06) for factor in (0.001, 0.004, 0.02, 0.05, 0.15, 0.4, 1.1, 2.4, 4.0, 9.0, 24.0)
        ]
        maximum = Estimate(kl * 60)
        delta = Distribution(
            *[Estimate(x * math.sqrt(kl) / 10) for x in (-0.1, -5, -4, -3, -2, -1, -0.3, 0.0, 0.2, 1, 2, 3, 4, 5)]
        )
        divergence = Divergence(
            kl=Distribution(est(kl), Estimate(0.0), *quantiles, maximum),
            delta_p=delta,
            delta_p_rms=est(math.sqrt(kl) / 4),
            same_top=Estimate(max(0.0, 1 - math.sqrt(kl) / 2), 0.0011, None, None),
            reference_perplexity=est(perplexity),
            log_perplexity_ratio=est(kl * 0.7, 0.1),
            perplexity_ratio=est(1 + kl * 0.7, 0.001),
            perplexity_difference=est(perplexity * kl * 0.7, 0.1),
            nll_correlation=0.998,
        )
    return TextScore(
        n_documents, 4 * n_documents, 255 * 4 * n_documents, est(perplexity * (1 + (kl or 0.0))), divergence
    )


def model_file(path: str, bits: float, *, n_weights: int = 4_650_000_000, name: str = "gemma 4 E2B it") -> ModelFile:
    """Make a file of so many bits per weight."""
    n_bytes = int(n_weights * bits / 8)
    fact = FileFact(Path(path).name, n_bytes, hashlib.sha256(path.encode("utf-8", "replace")).hexdigest())
    shares = (
        TypeShare("Q4_K", 180, int(n_weights * 0.7), int(n_bytes * 0.65)),
        TypeShare("Q6_K", 40, int(n_weights * 0.3), int(n_bytes * 0.35)),
    )
    return ModelFile(
        Path(path),
        name,
        (fact,),
        n_bytes,
        n_weights,
        bits,
        "gemma4",
        Path(path).stem.split("-")[-1],
        shares,
        is_qat=False,
    )


def speeds(path: str, bits: float, depths: tuple[int, ...]) -> ModelSpeeds:
    """Make speeds that fall with the size of the file and the depth of the context."""
    rng = random.Random(path)
    found = []
    for depth in depths:
        for test, speed in ((SpeedTest(512, 0, depth), 310 - 8 * bits), (SpeedTest(0, 128, depth), 98 / bits)):
            each = speed / (1 + depth / 20_000)
            samples = tuple(int(1e9 * test.n_timed / (each * rng.uniform(0.97, 1.03))) for _ in range(5))
            found.append(
                speed_of(test, SpeedSettings(), samples, started="2026-11-24T16:00:00Z", peak_bytes=int(6e8 * bits))
            )
    build = LlamaBuild("unknown", 0, "A processor", "", "CPU")
    return ModelSpeeds(Path(path), "gemma4 E2B", int(bits * 5e8), 4_650_000_000, 8, build, tuple(found))


def model_result(
    path: str,
    bits: float,
    kl: float | None,
    *,
    is_reference: bool = False,
    domains: tuple[str, ...] = DOMAINS,
    depths: tuple[int, ...] = (0, 2048, 8192, 16384),
    name: str = "gemma 4 E2B it",
) -> ModelResult:
    """Make a model's results: scores by domain and position, a sample, speeds at depths."""
    rng = random.Random(path)
    of_domains = tuple(
        DomainScore(domain, text_score(None if kl is None else kl * (0.6 + 0.35 * i), 4 + 3 * i, n_documents=5))
        for i, domain in enumerate(domains)
    )
    bins = tuple(
        PositionBin(
            start,
            start + 63,
            64 * 96,
            estimate(12 - start / 200),
            None if kl is None else estimate(kl * (1.5 - start / 3000), 0.05),
            Estimate(0.95),
        )
        for start in range(0, 2048, 64)
    )
    sample = []
    for _ in range(0 if kl is None else 1000):
        p = rng.betavariate(0.35, 0.45)
        logit = math.log(max(p, 1e-9) / max(1 - p, 1e-9)) + rng.gauss(0, 3 * math.sqrt(kl or 0.0))
        sample.append(TokenPair(p, 1 / (1 + math.exp(-logit))))
    return ModelResult(
        file=model_file(path, bits, name=name),
        is_reference=is_reference,
        score=Score(text_score(kl), of_domains if len(domains) > 1 else (), bins, tuple(sample)),
        cache=None,
        speeds=speeds(path, bits, depths),
        peak_bytes=int(bits * 6e8),
        failure=None,
    )


def cache_matrix() -> CacheMatrix:
    """Make a matrix of nine pairs of types."""
    types = (("f16", 16.0), ("q8_0", 8.5), ("q4_0", 4.5))
    cells = [
        CacheCell(key, value, int(2.1e6 * (a + b)), text_score((16 - a) * 0.0004 + (16 - b) * 0.0002))
        for key, a in types
        for value, b in types
    ]
    return CacheMatrix(16384, 6, tuple(cells))


def conditions(**changes: object) -> Conditions:
    """Make conditions of a run."""
    values: dict[str, object] = {
        "framing": "turn", "n_ctx": 2048, "stride": None, "key_type": "f16", "value_type": "f16", "confidence": 0.95,
        "resamples": 2000, "seed": 42, "device": "CPU", "n_threads": 8, "n_gpu_layers": 0, "flash_attention": None,
        "versions": {"gemma4-quant": "0.1.0", "llama-cpp-python": "0.3.36"}, "started": "2026-11-24T16:00:00Z",
        "elapsed_s": 1843.2,
        "command": COMMAND,
        **changes,
    }  # fmt: skip
    return Conditions(**values)  # type: ignore[arg-type]


def bench_result(
    n_models: int = 13,
    *,
    hostile: bool = False,
    domains: tuple[str, ...] = DOMAINS,
    depths: tuple[int, ...] = (0, 2048, 8192, 16384),
) -> BenchResult:
    """Make results of a reference and so many quantizations of it, in the order of QUANTIZATIONS, then variants."""
    models = [model_result("models/E2B-BF16.gguf", 16.0, None, is_reference=True, domains=domains, depths=depths)]
    for i in range(n_models):
        kind, bits, kl = QUANTIZATIONS[i % len(QUANTIZATIONS)]
        variant = i // len(QUANTIZATIONS)
        path = f"models/E2B-{kind}{f'-v{variant}' if variant else ''}.gguf"
        name = "gemma 4 E2B it"
        if hostile:
            path = f"models/{HOSTILE[i % len(HOSTILE)]}-{i}.gguf".replace("\0", "\x01")
            name = HOSTILE[(i + 1) % len(HOSTILE)]
        models.append(
            model_result(
                path,
                bits * (1 + 0.013 * variant),
                kl * (1 - 0.05 * variant),
                domains=domains,
                depths=depths,
                name=name,
            )
        )
    texts = tuple(TextUsed(domain, "built in", f"{i:064x}", 5, 10_000, 20, 5_100) for i, domain in enumerate(domains))
    reference = ReferenceUsed(models[0].file.path, ReferenceKind.MODEL, models[0].file, None, None, ())
    return BenchResult(tuple(models), reference, texts, conditions())


def hostile_result() -> BenchResult:
    """Make results in which every string from a file or a user is one of HOSTILE."""
    result = bench_result(len(HOSTILE), hostile=True, domains=HOSTILE)
    texts = tuple(replace(text, source=HOSTILE[i], sha256=HOSTILE[-1 - i]) for i, text in enumerate(result.texts))
    changed = conditions(
        device=HOSTILE[0], framing=HOSTILE[1], key_type=HOSTILE[2], started=HOSTILE[3], command=HOSTILE,
        versions={HOSTILE[4]: HOSTILE[5], "gemma4-quant": HOSTILE[1]},
    )  # fmt: skip
    models = [replace(model, failure=HOSTILE[i % len(HOSTILE)]) for i, model in enumerate(result.models)]
    models[2] = replace(
        models[2], cache=replace(cache_matrix(), cells=(replace(cache_matrix().cells[0], key_type=HOSTILE[0]),))
    )
    reference = ReferenceUsed(models[0].file.path, ReferenceKind.COMPACT, models[0].file, 12345, 1e-5, HOSTILE)
    return replace(
        result, models=tuple(models), texts=texts, conditions=changed, reference=reference, warnings=HOSTILE
    )


def with_broken_numbers(result: BenchResult) -> BenchResult:
    """Replace estimates of one model by NaN and infinity, as a library's caller could make them."""
    model = result.models[1]
    assert model.score is not None
    assert model.score.overall.divergence is not None
    bad = Estimate(math.nan, math.inf, -math.inf, math.nan)
    divergence = replace(
        model.score.overall.divergence, kl=replace(model.score.overall.divergence.kl, mean=bad), same_top=bad
    )
    bins = tuple(replace(each, kl=bad) for each in model.score.by_position[:3]) + model.score.by_position[3:]
    sample = (TokenPair(math.nan, 0.5), *model.score.sample)
    score = replace(
        model.score,
        overall=replace(model.score.overall, divergence=divergence, perplexity=bad),
        by_position=bins,
        sample=sample,
    )
    return replace(result, models=(result.models[0], replace(model, score=score), *result.models[2:]))
