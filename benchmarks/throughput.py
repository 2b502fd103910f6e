"""Speeds beside llama-bench's: `python benchmarks/throughput.py MODEL.gguf --llama-bench FILE`.

FILE: llama.cpp's llama-bench. Each round runs both, in turns, one right after the other, with the same tests, threads
and settings; on a machine that others use too, more and shorter rounds tell more than longer ones. Prints a Markdown
table: the fastest run of each, the ratio of those, and the median of the rounds' ratios.
"""

import argparse
import json
import subprocess
from collections import defaultdict
from pathlib import Path
from statistics import median

from gemma4_quant.cores import n_cores
from gemma4_quant.measuring.speed_plan import SpeedPlan
from gemma4_quant.measuring.speed_runs import measure_speeds
from gemma4_quant.progress import SilentProgress
from gemma4_quant.report.speed_formats import speed_fields


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("-d", type=int, nargs="+", default=[0])
    parser.add_argument("-r", type=int, default=2)
    parser.add_argument("-t", type=int, default=n_cores())
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    ours: dict[str, list[float]] = defaultdict(list)
    theirs: dict[str, list[float]] = defaultdict(list)
    for turn in range(arguments.rounds):
        sides = [(ours, run_ours), (theirs, run_theirs)]
        for found, run in sides if turn % 2 else reversed(sides):
            for name, speed in run(arguments).items():
                found[name].append(speed)
    print("| test | ours, fastest | llama-bench, fastest | ratio | median of ratios |")
    print("|---|---|---|---|---|")
    for name, speeds in ours.items():
        best, other = max(speeds), max(theirs[name])
        middle = median(mine / other for mine, other in zip(speeds, theirs[name], strict=True))
        print(f"| {name} | {best:.1f} | {other:.1f} | {best / other:.3f} | {middle:.3f} |", flush=True)


def run_ours(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the fastest repetition of each test by its name, in tokens/s."""
    plan = SpeedPlan(
        n_prompt=(arguments.p,),
        n_generate=(arguments.n,),
        depths=tuple(arguments.d),
        n_threads=(arguments.t,),
        repetitions=arguments.r,
    )
    found = measure_speeds(arguments.model, plan, SilentProgress())
    rows = [{**speed_fields(found, speed), "samples_ts": speed.samples} for speed in found.speeds]
    return {test_name(row): max(row["samples_ts"]) for row in rows}


def run_theirs(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the same of llama-bench."""
    command = [arguments.llama_bench, "-m", arguments.model, "-p", arguments.p, "-n", arguments.n, "-r", arguments.r]
    command += ["-d", ",".join(map(str, arguments.d)), "-t", arguments.t, "-o", "json"]
    answer = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    return {test_name(row): max(row["samples_ts"]) for row in json.loads(answer)}


def test_name(row: dict[str, object]) -> str:
    """Return a name for a result of either side."""
    return f"pp {row['n_prompt']}, tg {row['n_gen']}, depth {row['n_depth']}"


if __name__ == "__main__":
    main()
