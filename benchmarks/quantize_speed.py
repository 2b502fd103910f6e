"""Whole quantize commands beside llama-quantize: `python benchmarks/quantize_speed.py MODEL.gguf --quantizer FILE`.

MODEL: a BF16 file such as `gemma4-quant convert` makes of what benchmarks/large_checkpoint.py writes. FILE:
llama.cpp's llama-quantize. Both get the same random importance, the same types for every tensor (--strict-llama) and
the same threads, one right after the other in every round, with the model in memory and the disk idle. Prints a
Markdown table of the fastest runs: on a machine that others use too, those are the least disturbed. `scaling` is the
time with one thread over that with all.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from measured_process import Measured, measure, warm

from gemma4_quant.calibration.importance import Entry, Importance, write_importance
from gemma4_quant.cores import n_cores
from gemma4_quant.formats.gguf_reader import read_gguf

FILE_TYPES = ("Q4_K_M", "Q6_K", "IQ4_XS", "Q8_0", "Q4_0")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantizer", type=Path, help="llama.cpp's llama-quantize; left out when not given")
    parser.add_argument("--types", nargs="+", default=FILE_TYPES)
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scaling", action="store_true", help="run ours with one thread too")
    parser.add_argument("-t", "--threads", type=int, default=n_cores())
    arguments = parser.parse_args()
    print("| file type | llama-quantize s (processor s) | ours s (processor s) | times faster | peak MB | scaling |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.model.parent) as directory:
        importance, output = Path(directory) / "imatrix.gguf", Path(directory) / "output.gguf"
        write_random_importance(arguments.model, importance)
        for file_type in arguments.types:
            ours = [sys.executable, "-m", "gemma4_quant", "quantize", arguments.model, output, "--type", file_type]
            ours += ["--imatrix", importance, "--strict-llama", "--effort", arguments.effort, "--threads"]
            theirs = [arguments.quantizer, "--imatrix", importance, arguments.model, output, file_type]
            runs: dict[str, list[Measured]] = {"ours": [], "theirs": [], "alone": []}
            for _ in range(arguments.rounds):
                runs["ours"].append(one_run([*ours, str(arguments.threads)], arguments.model, output))
                if arguments.quantizer:
                    runs["theirs"].append(one_run([*theirs, str(arguments.threads)], arguments.model, output))
                if arguments.scaling:
                    runs["alone"].append(one_run([*ours, "1"], arguments.model, output))
            print_line(file_type, runs)


def write_random_importance(model: Path, path: Path) -> None:
    """Write importance of every matrix of a model: a few columns far above the rest, as real activations have."""
    random = np.random.default_rng(1)
    entries = {
        tensor.name: Entry(
            random.gamma(0.5, 1.0, (tensor.n_matrices, tensor.n_cols)).astype(np.float32) + np.float32(1e-3),
            np.ones(tensor.n_matrices, np.float32),
        )
        for tensor in read_gguf(model).tensors
        if len(tensor.shape) > 1 and "norm" not in tensor.name
    }
    write_importance(path, Importance(entries, ["random"], 1, 512))


def one_run(command: list[str | Path], model: Path, output: Path) -> Measured:
    """Run a command with its input in memory and the disk idle; delete what it wrote."""
    warm(model)
    os.sync()
    measured = measure(command)
    output.unlink()
    return measured


def print_line(file_type: str, runs: dict[str, list[Measured]]) -> None:
    """Print the fastest run of each."""
    fastest = {name: min(found, key=lambda run: run.seconds) for name, found in runs.items() if found}
    ours, theirs, alone = fastest["ours"], fastest.get("theirs"), fastest.get("alone")
    cells = [
        file_type,
        f"{theirs.seconds:.1f} ({theirs.cpu_s:.1f})" if theirs else "",
        f"{ours.seconds:.1f} ({ours.cpu_s:.1f})",
        f"{theirs.seconds / ours.seconds:.2f}" if theirs else "",
        f"{ours.peak_bytes / 1e6:.0f}",
        f"{alone.seconds / ours.seconds:.2f}" if alone else "",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
