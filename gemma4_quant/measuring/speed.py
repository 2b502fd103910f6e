"""What speed tests found, and how steady it was."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from gemma4_quant.measuring.speed_plan import SpeedSettings, SpeedTest

DRIFT_LIMIT = 0.10
"""Repetitions that differ by more than this share are no measurement: something else ran, or the clock changed."""


@dataclass(frozen=True)
class Speed:
    """Result of one test under some settings.

    test: llama-bench's name, such as `pp512`; counts: its numbers of tokens. tokens_per_second: mean over
    repetitions; deviation: their standard deviation. samples: tokens per second of each repetition; samples_ns: their
    times. drift: how much slower the slowest repetition was than the fastest, as a share; has_drifted: whether that
    is too much to trust the result. started: when, in UTC (RFC 3339). peak_bytes: most memory that model and context
    took, mapped weights included; device_bytes: most memory of the devices offloaded to. Either is None where it
    cannot be measured.
    """

    test: str
    counts: SpeedTest
    settings: SpeedSettings
    tokens_per_second: float
    deviation: float
    samples: tuple[float, ...]
    samples_ns: tuple[int, ...]
    drift: float
    has_drifted: bool
    started: str
    peak_bytes: int | None
    device_bytes: int | None


def speed_of(
    counts: SpeedTest,
    settings: SpeedSettings,
    samples_ns: tuple[int, ...],
    *,
    started: str,
    peak_bytes: int | None = None,
    device_bytes: int | None = None,
) -> Speed:
    """Summarise the nanoseconds of one or more repetitions of a test."""
    samples = tuple(1e9 * counts.n_timed / max(ns, 1) for ns in samples_ns)
    drift = 1 - min(samples) / max(samples)
    return Speed(
        test=counts.name,
        counts=counts,
        settings=settings,
        tokens_per_second=mean(samples),
        deviation=stdev(samples) if len(samples) > 1 else 0.0,
        samples=samples,
        samples_ns=samples_ns,
        drift=drift,
        has_drifted=drift > DRIFT_LIMIT,
        started=started,
        peak_bytes=peak_bytes,
        device_bytes=device_bytes,
    )


@dataclass(frozen=True)
class LlamaBuild:
    """Which llama.cpp measured, and on what.

    commit, number: of its source; `unknown` and 0 where the build does not say. cpu, gpu: descriptions of the
    processors. backends: names of those it was built with, such as `CPU` or `Metal,BLAS`.
    """

    commit: str
    number: int
    cpu: str
    gpu: str
    backends: str


@dataclass(frozen=True)
class ModelSpeeds:
    """Speeds of one file. model_type: llama.cpp's description, such as `gemma4 E2B Q4_K - Medium`.

    model_bytes, n_weights: as llama.cpp counts them. n_threads: used where the settings name no number.
    """

    path: Path
    model_type: str
    model_bytes: int
    n_weights: int
    n_threads: int
    build: LlamaBuild
    speeds: tuple[Speed, ...]
