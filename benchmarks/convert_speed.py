"""Conversion beside `cp` and llama.cpp's converter: `python benchmarks/convert_speed.py CHECKPOINT --converter FILE`.

CHECKPOINT: such as benchmarks/large_checkpoint.py writes. FILE: llama.cpp's convert_hf_to_gguf.py, run with
--converter-python, an interpreter that has torch and transformers; left out when not given. Every round runs all
of them one after the other, with the checkpoint in memory and the disk idle. Prints a Markdown table of the fastest
runs: on a machine that others use too, those are the least disturbed.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measured_process import Measured, measure, warm

OUT_TYPES = ("bf16", "q8_0")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--converter-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--converter-rounds", type=int, default=1, help="it is slow [default: 1]")
    parser.add_argument("--directory", type=Path, help="where to write [default: beside the checkpoint]")
    arguments = parser.parse_args()
    shards = sorted(arguments.checkpoint.glob("*.safetensors"))
    n_bytes = sum(path.stat().st_size for path in shards)
    runs: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory or arguments.checkpoint.parent) as directory:
        output = Path(directory) / "output"
        commands = {"cp": ["cp", *shards, directory]}
        for out_type in OUT_TYPES:
            options = [arguments.checkpoint, "--outtype", out_type, "--outfile", output]
            commands[f"ours, {out_type}"] = [sys.executable, "-m", "gemma4_quant", "convert", *options]
            if arguments.converter:
                commands[f"llama.cpp, {out_type}"] = [arguments.converter_python, arguments.converter, *options]
        for number in range(arguments.rounds):
            for name, command in commands.items():
                if name.startswith("llama.cpp") and number >= arguments.converter_rounds:
                    continue
                runs.setdefault(name, []).append(one_run(command, shards, Path(directory)))
    print_table(runs, n_bytes)


def one_run(command: Sequence[str | Path], shards: Sequence[Path], directory: Path) -> Measured:
    """Run a command with its input in memory and the disk idle; delete what it wrote."""
    for path in shards:
        warm(path)
    os.sync()
    measured = measure(command)
    for path in directory.iterdir():
        path.unlink()
    return measured


def print_table(runs: dict[str, list[Measured]], n_bytes: int) -> None:
    """Print the fastest run of each command, beside `cp` and beside llama.cpp's converter."""
    fastest = {name: min(found, key=lambda run: run.seconds) for name, found in runs.items()}
    copied = fastest["cp"].seconds
    print(f"{n_bytes / 1e9:.2f} GB\n")
    print("| | seconds | processor s | peak memory MB | GB/s | times `cp` | times faster than llama.cpp |")
    print("|---|---|---|---|---|---|---|")
    for name, run in fastest.items():
        theirs = fastest.get(name.replace("ours", "llama.cpp")) if name.startswith("ours") else None
        faster = f"{theirs.seconds / run.seconds:.1f}" if theirs else ""
        print(
            f"| {name} | {run.seconds:.2f} | {run.cpu_s:.2f} | {run.peak_bytes / 1e6:.0f} "
            f"| {n_bytes / run.seconds / 1e9:.2f} | {run.seconds / copied:.2f} | {faster} |"
        )


if __name__ == "__main__":
    main()
