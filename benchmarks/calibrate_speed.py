"""How fast calibration is, in interleaved rounds with plain evaluation of the same chunks and with llama-imatrix.

    python benchmarks/calibrate_speed.py MODEL.gguf TEXT [--llama-imatrix PROGRAM] [--chunks 40] [--threads 2]

Ours and plain evaluation run in this process, each on its own context. llama-imatrix is a process of its own, whose
seconds count from when it begins to evaluate (by the stamps of its log); -b 2048 and --no-ppl, as ours. Seconds say
something on an idle machine only; processor time does on a busy one too.
"""

import argparse
import re
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from gemma4_quant.calibration.accumulate import Accumulator
from gemma4_quant.calibration.passes import PartOfText, Passes, session_options
from gemma4_quant.calibration.resume import ResumeFile
from gemma4_quant.progress import SilentProgress
from gemma4_quant.runner.session import Session
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.text import chunk_text

N_CTX = 512


@dataclass(frozen=True)
class Run:
    """What a run took, in seconds, and in seconds of processor time."""

    seconds: float
    cpu_s: float


class Nothing(Accumulator):
    """An accumulator that wants no product: plain evaluation through the same loop."""

    def wants(self, _product: object) -> bool:
        """Decline; see Observer."""
        return False


def evaluated(model: LoadedModel, chunks: PartOfText, accumulator: Accumulator | None, n_threads: int) -> Run:
    """Evaluate chunks with an accumulator, or without a callback at all for None."""
    options = session_options(model, chunks.n_whole, N_CTX, n_threads)
    with Session(model, options, accumulator) as session, tempfile.TemporaryDirectory() as folder:
        state = ResumeFile(Path(folder) / "none", "benchmark")
        passes = Passes(session, accumulator or Nothing(), state)
        seconds, cpu_s = time.perf_counter(), time.process_time()
        passes.run("evaluate", chunks, SilentProgress())
        return Run(time.perf_counter() - seconds, time.process_time() - cpu_s)


def llama_imatrix(program: Path, model: Path, text: Path, n_chunks: int, n_threads: int) -> Run:
    """Run llama-imatrix; seconds of its evaluation, processor time of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "-m", model, "-f", text, "-o", Path(folder) / "imatrix.gguf", "--chunks", n_chunks]
        command += ["-c", N_CTX, "-b", 2048, "-t", n_threads, "--no-ppl", "-ngl", 0]
        before, started = getrusage(RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        seconds, after = time.perf_counter() - started, getrusage(RUSAGE_CHILDREN)
    found = re.search(r"(\d+)\.(\d+)\.(\d+)\.(\d+) I compute_imatrix: computing over", done.stdout + done.stderr)
    if found is None:
        raise SystemExit("llama-imatrix does not say when it begins to evaluate")
    minutes, whole_s, ms, us = map(int, found.groups())
    begun = 60 * minutes + whole_s + ms / 1e3 + us / 1e6
    return Run(seconds - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def report(name: str, runs: list[Run], plain: list[Run], n_tokens: int) -> None:
    """Print medians, and the median ratio to plain evaluation of the same round."""
    seconds = statistics.median(run.seconds for run in runs)
    ratios = [statistics.median(getattr(a, key) / getattr(b, key) for a, b in zip(runs, plain, strict=True))
              for key in ("seconds", "cpu_s")]  # fmt: skip
    print(f"{name:18s} {n_tokens / seconds:10.0f} {ratios[0]:10.3f} {ratios[1]:10.3f}")


def main() -> None:
    """Measure in rounds, and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--llama-imatrix", type=Path)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    runs: dict[str, list[Run]] = {"plain": [], "calibrate": [], "with output": [], "llama-imatrix": []}
    with LoadedModel(arguments.model, n_gpu_layers=0) as model:
        tokens = chunk_text(model, arguments.text, N_CTX, arguments.chunks).tokens
        chunks = PartOfText(tokens, 0, len(tokens))
        evaluated(model, chunks, Accumulator(process_output=True), arguments.threads)  # compile, fill caches
        for _ in range(arguments.rounds):
            runs["plain"].append(evaluated(model, chunks, None, arguments.threads))
            runs["calibrate"].append(evaluated(model, chunks, Accumulator(), arguments.threads))
            runs["with output"].append(evaluated(model, chunks, Accumulator(process_output=True), arguments.threads))
            if arguments.llama_imatrix:
                runs["llama-imatrix"].append(
                    llama_imatrix(
                        arguments.llama_imatrix, arguments.model, arguments.text, len(tokens), arguments.threads
                    )
                )
    print(f"{len(tokens)} chunks of {N_CTX} tokens, {arguments.threads} threads, {arguments.rounds} rounds")
    print("                     tokens/s  time/plain   cpu/plain")
    for name, found in runs.items():
        if found:
            report(name, found, runs["plain"], tokens.size)


if __name__ == "__main__":
    main()
