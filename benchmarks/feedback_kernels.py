"""Speed of error feedback on one core: `python benchmarks/feedback_kernels.py [TYPE ...] [--columns 1536 6144]`.

Prints a Markdown table: million weights a second of processor time from float32 rows to bytes, the same without
feedback, the layer-output error after over before on correlated inputs, multiplications and additions in matrix
products for each weight, and what they alone would take at the rate that numpy's BLAS reaches here on one thread.
Set OPENBLAS_NUM_THREADS=1 for that rate. Factoring H, once for all rows of a matrix, is timed apart.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.feedback import (
    FEEDBACK_TYPES,
    ROWS_AT_ONCE,
    compile_feedback_kernels,
    encode_with_feedback,
    prepare_factor,
)
from gemma4_quant.codecs.feedback.encode import SWEEPS
from gemma4_quant.codecs.feedback.factor import PANEL
from gemma4_quant.ggml import GgmlType, parse_ggml_type

N_RUNS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", type=parse_ggml_type, help="tensor types [default: all]")
    parser.add_argument("--columns", nargs="+", type=int, default=[1536, 6144], help="in-features, multiples of 256")
    parser.add_argument("--effort", choices=[each.value for each in Effort], default=Effort.BALANCED.value)
    parser.add_argument("--rows", type=int, default=2 * ROWS_AT_ONCE)
    arguments = parser.parse_args()
    effort = Effort(arguments.effort)
    kinds: list[GgmlType] = arguments.types or sorted(FEEDBACK_TYPES)
    compile_feedback_kernels(kinds)
    peak = blas_rate()
    print(f"BLAS on one thread: {peak / 1e9:.0f} Gflop/s\n")
    print("| columns | type | M weights/s | without feedback | error ratio | flop/weight | products alone |")
    print("|---|---|---|---|---|---|---|")
    for n_columns in arguments.columns:
        moments = correlated_moments(n_columns)
        start = time.thread_time()
        factor = prepare_factor([moments])
        factor_s = time.thread_time() - start
        rows = (np.random.default_rng(2).standard_normal((arguments.rows, n_columns)) * 0.02).astype(np.float32)
        n_flops = flops_a_weight(n_columns, effort)
        for kind in kinds:
            result = encode_with_feedback(rows, kind, factor, effort)
            ours = least_time(partial(encode_with_feedback, rows, kind, factor, effort))
            plain = least_time(partial(codec_for(kind).encode, rows, factor.importance, effort))
            print(
                f"| {n_columns} | {kind.name} | {rows.size / ours / 1e6:.1f} | {rows.size / plain / 1e6:.0f} "
                f"| {result.error_after / result.error_before:.3f} | {n_flops} | {peak / n_flops / 1e6:.1f} |",
                flush=True,
            )
        print(f"| {n_columns} | factor of H: {factor_s:.1f} s | | | | | |", flush=True)


def flops_a_weight(n_columns: int, effort: Effort) -> int:
    """Return additions and multiplications for each weight in products of rows with H's factor.

    Carrying errors forward takes n − 256, a panel's own four triangles (target, rounding, gradient, rest) 256 each;
    the gradient for descent over whole rows takes n.
    """
    sweeps = SWEEPS[effort]
    whole = n_columns if sweeps.of_row and n_columns <= sweeps.widest else 0
    return n_columns - PANEL + 4 * PANEL + whole


def correlated_moments(n_columns: int) -> Float32Rows:
    """E[x xᵀ] of inputs that a quarter as many causes explain, with columns of unequal size."""
    random = np.random.default_rng(1)
    n_causes = n_columns // 4
    causes = random.standard_normal((n_causes, n_columns)).astype(np.float32)
    causes *= (np.arange(1, n_causes + 1, dtype=np.float32) ** np.float32(-0.6))[:, None]
    size = np.exp(0.5 * random.standard_normal(n_columns)).astype(np.float32)
    moments = (causes.T @ causes + np.float32(0.1) * np.eye(n_columns, dtype=np.float32)) * np.outer(size, size)
    return moments.astype(np.float32)


def least_time(work: Callable[[], object]) -> float:
    """Return the processor seconds of the fastest run."""
    least = float("inf")
    for _ in range(N_RUNS):
        start = time.thread_time()
        work()
        least = min(least, time.thread_time() - start)
    return least


def blas_rate() -> float:
    """Return the flops a second of a product as large as one panel's."""
    left = np.ones((ROWS_AT_ONCE, PANEL), np.float32)
    right = np.ones((PANEL, 4096), np.float32)
    return 2 * left.shape[0] * right.size / least_time(lambda: left @ right)


if __name__ == "__main__":
    main()
