"""Tokens per second of evaluation beside llama-perplexity's: `evaluate_speed.py PROGRAM MODEL TEXT`.

PROGRAM: llama-perplexity. Pairs of runs in turns, on the same raw chunks and threads. Ours counts from the first
decode to the last score; llama-perplexity's is what a run takes beyond one of --less chunks, so that loading and
tokenising do not count (the times in its log are those of its logger). Ratios are of tokens per second, and of tokens
per second of processor time, which other work on the machine disturbs less. With --divergence, ours runs the model
twice.
"""

import argparse
import os
import re
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from math import exp
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before libgomp is loaded; see tests/conftest.py

from gemma4_quant.measuring.decoding import RunOptions, session_options
from gemma4_quant.measuring.evaluation import Candidate, evaluate
from gemma4_quant.measuring.memory import MemoryWatch
from gemma4_quant.measuring.references import ModelReference
from gemma4_quant.measuring.score_store import ScoreStore
from gemma4_quant.measuring.scored_text import Domain, ScoredText, WindowOptions, scored_text
from gemma4_quant.progress import SilentProgress
from gemma4_quant.runner.session import Session
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.texts.documents import read_documents
from gemma4_quant.texts.framing import Framing


def main() -> None:
    """Run pairs and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--less", type=int, default=4, help="chunks of the runs that are taken off [default: 4]")
    parser.add_argument("--divergence", action="store_true")
    arguments = parser.parse_args()
    domain = Domain("text", str(arguments.text), read_documents(arguments.text))
    with LoadedModel(arguments.model, n_gpu_layers=0) as model:
        text = scored_text(model, [domain], Framing.RAW, WindowOptions(arguments.ctx_size, arguments.chunks))
        our_run(model, text, arguments)  # compiles, and warms the cache
        pairs = []
        for _ in range(arguments.pairs):
            ours, theirs, less = (
                our_run(model, text, arguments),
                llama_run(arguments, arguments.chunks),
                llama_run(arguments, arguments.less),
            )
            beyond = Run(theirs.seconds - less.seconds, theirs.cpu_s - less.cpu_s, theirs.perplexity)
            share = 1 - arguments.less / arguments.chunks
            pairs.append((beyond.seconds / (share * ours.seconds), beyond.cpu_s / (share * ours.cpu_s)))
            print(f"ours {ours}, llama-perplexity {beyond} for {share:.2f} of the chunks", flush=True)
    wall, cpu = (median(pair[i] for pair in pairs) for i in (0, 1))
    print(f"ours is {wall:.3f} times as fast, {cpu:.3f} by processor time (medians of {len(pairs)} pairs)")


@dataclass(frozen=True)
class Run:
    """What a run took, and the perplexity it found. peak_mib: memory of a session with its logits."""

    seconds: float
    cpu_s: float
    perplexity: float
    peak_mib: float | None = None

    def __str__(self) -> str:
        """Write all of it."""
        memory = "" if self.peak_mib is None else f", {self.peak_mib:.0f} MiB"
        return f"{self.seconds:.2f} s ({self.cpu_s:.2f} s of processor time, PPL {self.perplexity:.4f}{memory})"


def our_run(model: LoadedModel, text: ScoredText, arguments: argparse.Namespace) -> Run:
    """Evaluate once."""
    watch = MemoryWatch()
    windows = [passage.window for passage in text.passages]
    n_sessions = 1 + arguments.divergence
    sizes = session_options(windows, model.n_vocab, n_sessions, RunOptions(arguments.threads))
    with ExitStack() as stack:
        sessions = [stack.enter_context(Session(model, sizes)) for _ in range(n_sessions)]
        store = ScoreStore(1, text.n_positions)
        base = ModelReference(sessions[1]) if arguments.divergence else None
        started, cpu = time.perf_counter(), time.process_time()
        failures = evaluate([Candidate(sessions[0], 0)], text, base, store, sizes, SilentProgress())
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    scores = store.scores(0)
    if scores is None:
        raise failures[0]
    return Run(seconds, cpu_s, exp(float(scores.nll.mean())), (watch.peak_bytes() or 0) / (1 << 20))


def llama_run(arguments: argparse.Namespace, n_chunks: int) -> Run:
    """Run llama-perplexity; again when it ended before its log was written."""
    command = [arguments.program, "-m", arguments.model, "-f", arguments.text, "-c", arguments.ctx_size]
    command += ["--chunks", n_chunks, "-t", arguments.threads, "-ngl", 0]
    while True:
        before, started = getrusage(RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([str(part) for part in command], capture_output=True, check=True)
        seconds, after = time.perf_counter() - started, getrusage(RUSAGE_CHILDREN)
        found = re.search(rb"PPL = ([\d.]+)", done.stdout + done.stderr)
        if found:
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            return Run(seconds, cpu_s, float(found[1]))


if __name__ == "__main__":
    main()
