"""What a run would write, how large, how long and with how much memory; reads no tensor and writes nothing."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma4_quant.codecs import codec_for, kernels_cached
from gemma4_quant.codecs.base import Effort
from gemma4_quant.cores import n_cores
from gemma4_quant.ggml import GgmlType, block_size
from gemma4_quant.writing.plan import Cost, PlannedTensor
from gemma4_quant.writing.writer import Job, bytes_needed, check_jobs

DISK_BYTES_PER_S = 1_000_000_000
"""Assumed speed of the disk, reading and writing together: an ordinary SSD's. It cannot be tried without writing."""

BASE_MEMORY_BYTES = 250_000_000
THREAD_MEMORY_BYTES = 30_000_000
"""Memory of a run and of each of its threads, rounded up from what benchmarks/convert_speed.py and quantize_speed.py
measure (docs/measurements.md); it does not depend on the model but for its vocabulary."""

_SAMPLE_ROWS = 64
_SAMPLE_WEIGHTS = 1 << 17
_TRIAL_S = 0.1


@dataclass(frozen=True)
class TensorForecast:
    """A tensor as it would be written.

    shape: as GGUF writes it, input features first. source_type, type: before and after. wanted: the type that its
    rows do not fit, None when they do. reason: what decided the type, empty for conversions.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    n_bytes: int
    reason: str = ""
    wanted: str | None = None


@dataclass(frozen=True)
class FileForecast:
    """A file that would be written. n_bytes: its size. exists: whether it would be replaced."""

    path: Path
    n_bytes: int
    n_tensors: int
    exists: bool


@dataclass(frozen=True)
class OutputForecast:
    """One output: a file or the shards of a split. n_bytes: of all its files. bits_per_weight: of tensor data."""

    file_type: str
    files: tuple[FileForecast, ...]
    n_bytes: int
    n_weights: int
    bits_per_weight: float
    tensors: tuple[TensorForecast, ...]


@dataclass(frozen=True)
class Forecast:
    """A whole run.

    disk_bytes, free_bytes: needed by the run, and free where it would write (the least, of several directories).
    seconds: estimate, None when encoders that it needs are not compiled yet on this machine; the first run does that.
    memory_bytes: estimate of the peak, without pages of files that the system keeps for its own good.
    """

    outputs: tuple[OutputForecast, ...]
    disk_bytes: int
    free_bytes: int
    seconds: float | None
    n_threads: int
    memory_bytes: int

    @property
    def fits(self) -> bool:
        """Tell whether there is room for the output."""
        return self.disk_bytes <= self.free_bytes


@dataclass(frozen=True)
class Decision:
    """Why a tensor gets its type. wanted: the type before the width of its rows was considered."""

    reason: str
    wanted: GgmlType


def forecast(
    jobs: Mapping[str, Job],
    decisions: Mapping[str, Mapping[str, Decision]] | None = None,
    *,
    effort: Effort,
    inputs: Sequence[Path] = (),
    n_threads: int | None = None,
) -> Forecast:
    """Say what writing `jobs`, by file type, would do.

    decisions: by file type and tensor name. inputs: see write_ggufs.
    The time is that of a trial of each encoder on random weights, made here and now on one core, shared among
    `n_threads`, and of the disk at DISK_BYTES_PER_S. Raises OutputError for what would stop the run, other than a
    lack of space.
    """
    check_jobs(list(jobs.values()), inputs)
    n_threads = n_threads or n_cores()
    costs = _costs(list(jobs.values()), effort)
    outputs = tuple(_output(name, job, (decisions or {}).get(name, {})) for name, job in jobs.items())
    needed = bytes_needed(list(jobs.values()))
    return Forecast(
        outputs=outputs,
        disk_bytes=sum(needed.values()),
        free_bytes=min((shutil.disk_usage(directory).free for directory in needed), default=0),
        seconds=_seconds(list(jobs.values()), effort, n_threads, costs),
        n_threads=n_threads,
        memory_bytes=BASE_MEMORY_BYTES + n_threads * THREAD_MEMORY_BYTES + _largest(costs, n_threads),
    )


def _output(name: str, job: Job, decisions: Mapping[str, Decision]) -> OutputForecast:
    tensors = job.plan.tensors
    n_weights = sum(planned.tensor.n_weights for planned in tensors)
    return OutputForecast(
        file_type=name,
        files=tuple(
            FileForecast(path, file.n_bytes, len(file.tensors), path.exists())
            for path, file in zip(job.paths, job.plan.files, strict=True)
        ),
        n_bytes=job.plan.n_bytes,
        n_weights=n_weights,
        bits_per_weight=sum(planned.n_bytes for planned in tensors) * 8 / max(1, n_weights),
        tensors=tuple(_tensor(planned, decisions.get(planned.tensor.name)) for planned in tensors),
    )


def _tensor(planned: PlannedTensor, decision: Decision | None) -> TensorForecast:
    return TensorForecast(
        name=planned.tensor.name,
        shape=tuple(reversed(planned.tensor.shape)),
        source_type=planned.tensor.type.name,
        type=planned.type.name,
        n_bytes=planned.n_bytes,
        reason=decision.reason if decision else "",
        wanted=decision.wanted.name if decision and decision.wanted is not planned.type else None,
    )


def _costs(jobs: Sequence[Job], effort: Effort) -> dict[tuple[str, GgmlType], Cost]:
    """Return what encoders of their own take, by tensor and type."""
    found = {}
    for planned in (planned for job in jobs for planned in job.plan.tensors):
        cost = planned.encoder.cost(effort) if planned.encoder is not None else None
        if cost is not None:
            found[planned.tensor.name, planned.type] = cost
    return found


def _largest(costs: Mapping[tuple[str, GgmlType], Cost], n_threads: int) -> int:
    """Return the most memory that encoders take: one is at work in each thread, on tensors after one another."""
    return sum(sorted((cost.memory_bytes for cost in costs.values()), reverse=True)[:n_threads])


def _seconds(
    jobs: Sequence[Job], effort: Effort, n_threads: int, costs: Mapping[tuple[str, GgmlType], Cost]
) -> float | None:
    weights: dict[tuple[GgmlType, GgmlType], int] = {}
    read: dict[str, int] = {}
    for planned in (planned for job in jobs for planned in job.plan.tensors):
        tensor = planned.tensor
        read[tensor.name] = tensor.n_bytes
        if planned.type is not tensor.type and (tensor.name, planned.type) not in costs:
            weights[tensor.type, planned.type] = weights.get((tensor.type, planned.type), 0) + tensor.n_weights
    if not kernels_cached({kind for pair in weights for kind in pair}):
        return None
    compute = sum(n * _seconds_per_weight(*pair, effort) for pair, n in weights.items())
    compute += sum(cost.seconds for cost in costs.values())
    n_bytes = sum(read.values()) + sum(job.plan.n_bytes for job in jobs)
    return compute / n_threads + n_bytes / DISK_BYTES_PER_S


def _seconds_per_weight(source: GgmlType, kind: GgmlType, effort: Effort) -> float:
    """Try an encoder on random weights for a moment, on one core."""
    n_cols = _SAMPLE_WEIGHTS // _SAMPLE_ROWS
    n_cols -= n_cols % max(block_size(source).n_weights, block_size(kind).n_weights)
    rows = np.random.default_rng(0).standard_normal((_SAMPLE_ROWS, n_cols), np.float32)
    importance = np.linspace(0.5, 1.5, n_cols, dtype=np.float32)
    stored = codec_for(source).encode(rows, None, Effort.FAST)
    best, until = float("inf"), time.perf_counter() + _TRIAL_S
    while best == float("inf") or time.perf_counter() < until:
        start = time.perf_counter()
        codec_for(kind).encode(codec_for(source).decode(stored, n_cols), importance, effort)
        best = min(best, time.perf_counter() - start)
    return best / rows.size
