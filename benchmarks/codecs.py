"""Block encoders beside ggml's, on one core: `python benchmarks/codecs.py [TYPE ...]`.

Prints a Markdown table: million weights a second of processor time, with importance, and our weighted error over
ggml's on Gaussian weights. Needs the test requirements (llama-cpp-python's libggml is the reference).
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs import codec_for, compile_kernels
from gemma4_quant.codecs.base import Effort
from gemma4_quant.ggml import GgmlType, parse_ggml_type

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import libggml

SHAPE = (512, 1536)
N_RUNS = 6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", type=parse_ggml_type, help="tensor types [default: all with blocks]")
    parser.add_argument("--effort", choices=[each.value for each in Effort], default=Effort.BALANCED.value)
    arguments = parser.parse_args()
    effort = Effort(arguments.effort)
    kinds: list[GgmlType] = arguments.types or list(libggml.BLOCK_TYPES)
    compile_kernels(kinds)
    random = np.random.default_rng(1)
    rows = (random.standard_normal(SHAPE) * 0.02).astype(np.float32)
    importance = (random.gamma(0.5, 1.0, SHAPE[1]) + 1e-3).astype(np.float32)
    print("| type | ours, M weights/s | ggml, M weights/s | error ratio |\n|---|---|---|---|")
    for kind in kinds:
        (ours, our_s), (theirs, their_s) = timed(
            lambda kind=kind: codec_for(kind).encode(rows, importance, effort),
            lambda kind=kind: libggml.encode(kind, rows, importance),
        )
        ratio = error(kind, ours, rows, importance) / error(kind, theirs, rows, importance)
        print(
            f"| {kind.name} | {rows.size / our_s / 1e6:.0f} | {rows.size / their_s / 1e6:.0f} | {ratio:.3f} |",
            flush=True,
        )


def timed(*encoders: Callable[[], ByteRows]) -> list[tuple[ByteRows, float]]:
    """Return the bytes of each encoder and the processor seconds of its fastest run; they take turns."""
    results = [(encode(), float("inf")) for encode in encoders]
    for _ in range(N_RUNS):
        for i, encode in enumerate(encoders):
            start = time.thread_time()
            data = encode()
            results[i] = data, min(results[i][1], time.thread_time() - start)
    return results


def error(kind: GgmlType, data: ByteRows, rows: Float32Rows, importance: Float32Row) -> float:
    """Return the weighted squared error of encoded rows, decoded by ggml."""
    rest = libggml.decode(kind, data, rows.shape[1]).astype(np.float64) - rows
    return float((importance * rest * rest).sum())


if __name__ == "__main__":
    main()
