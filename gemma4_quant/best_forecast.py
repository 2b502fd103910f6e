"""What `quantize --best` takes: disk, memory and time of its steps, before any of them runs."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gemma4_quant.calibration.moments import block_widths
from gemma4_quant.calibration.moments_plan import MomentsPlan, plan_moments
from gemma4_quant.calibration.survey import Input, expected_inputs
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.feedback import FEEDBACK_TYPES
from gemma4_quant.cores import n_cores
from gemma4_quant.feedback.cost import feedback_cost
from gemma4_quant.ggml import GgmlType, row_bytes
from gemma4_quant.model import Model
from gemma4_quant.writing.forecast import BASE_MEMORY_BYTES, THREAD_MEMORY_BYTES
from gemma4_quant.writing.writer import Job, bytes_needed

_TRIAL_WIDTH = 768
_TRIAL_S = 0.1


@dataclass(frozen=True)
class BestForecast:
    """What a run takes.

    work_bytes: of the 16-bit file and the second moments; output_bytes: of what is written; free_bytes: where both
    go. memory_bytes: of the second moments or the factors, whichever is more, with the rest of a run; the 16-bit file
    is mapped on top, and the system gives its pages up under pressure. calibrate_s, quantize_s: estimates, from
    trials of matrix products and of the encoders on this machine. n_passes: over n_tokens of text.
    """

    work_bytes: int
    output_bytes: int
    free_bytes: int
    memory_bytes: int
    calibrate_s: float
    quantize_s: float
    n_tokens: int
    n_passes: int
    n_threads: int

    @property
    def fits(self) -> bool:
        """Tell whether there is room."""
        return self.work_bytes + self.output_bytes <= self.free_bytes


def forecast_best(
    model: Model,
    jobs: Sequence[Job],
    *,
    n_tokens: int,
    memory_bytes: int,
    effort: Effort,
    n_threads: int | None = None,
) -> BestForecast:
    """Say what it takes to calibrate a model with n_tokens tokens and write `jobs` with error feedback."""
    n_threads = n_threads or n_cores()
    inputs = expected_inputs(model)
    plan = plan_moments(inputs, n_tokens, memory_bytes)
    widths = {name: entry.block_width for entry in plan.entries for name in entry.names}
    quantize_s, factor_bytes = _quantizing(jobs, widths, effort)
    needed = bytes_needed(jobs)
    return BestForecast(
        work_bytes=_runnable_bytes(model) + _moments_bytes(plan),
        output_bytes=sum(needed.values()),
        free_bytes=min((shutil.disk_usage(directory).free for directory in needed), default=0),
        memory_bytes=BASE_MEMORY_BYTES + n_threads * THREAD_MEMORY_BYTES + max(plan.memory_bytes, factor_bytes),
        calibrate_s=_operations(model, inputs, plan, n_tokens) / (_operations_per_s() * n_threads),
        quantize_s=quantize_s / n_threads,
        n_tokens=n_tokens,
        n_passes=len(plan.passes),
        n_threads=n_threads,
    )


def _runnable_bytes(model: Model) -> int:
    """Return the size of the 16-bit file that a checkpoint becomes first; none for a GGUF file."""
    if not model.path.is_dir():
        return 0
    return sum(tensor.n_rows * row_bytes(GgmlType.BF16, tensor.n_cols) for tensor in model.tensors)


def _moments_bytes(plan: MomentsPlan) -> int:
    return sum(
        4 * int(np.prod(entry.shapes["sums"])) + 2 * int(np.prod(entry.shapes["held_out"])) for entry in plan.entries
    )


def _quantizing(jobs: Sequence[Job], widths: Mapping[str, int], effort: Effort) -> tuple[float, int]:
    """Return the processor seconds of all jobs, and the memory of the largest factor."""
    seconds, largest = 0.0, 0
    for planned in (planned for job in jobs for planned in job.plan.tensors):
        tensor = planned.tensor
        if planned.type in FEEDBACK_TYPES and planned.type is not tensor.type and tensor.name in widths:
            cost = feedback_cost(tensor, planned.type, widths[tensor.name], effort)
            seconds, largest = seconds + cost.seconds, max(largest, cost.memory_bytes)
    return seconds, largest


def _operations(model: Model, inputs: Sequence[Input], plan: MomentsPlan, n_tokens: int) -> float:
    """Return the floating-point operations of all passes: of the model, and of adding up the moments once."""
    n_weights = {tensor.name: tensor.n_weights for tensor in model.tensors}
    per_token = sum(
        2 * n_weights.get(name, 0) * each.n_used / each.n_matrices for each in inputs for name in each.names
    )
    routed = {each.name: each.n_used for each in inputs}
    adding = sum(
        routed[entry.name] * sum(width * width for width in block_widths(entry.n_in, entry.block_width))
        for entry in plan.entries
    )
    return n_tokens * (len(plan.passes) * per_token + adding)


def _operations_per_s() -> float:
    """Multiply matrices for a moment; returns operations a second, of one core as far as BLAS can be held to it."""
    from gemma4_quant.blas import blas_threads

    left = np.ones((_TRIAL_WIDTH, _TRIAL_WIDTH), np.float32)
    best, until = float("inf"), time.perf_counter() + _TRIAL_S
    with blas_threads(1):
        while best == float("inf") or time.perf_counter() < until:
            start = time.perf_counter()
            left @ left
            best = min(best, time.perf_counter() - start)
    return 2 * _TRIAL_WIDTH**3 / best
