"""What a user waits for before the real work begins: `python benchmarks/latency.py`.

Prints a Markdown table: medians of elapsed time, and of computing time, which other work on the machine changes less.
Start-up is measured in fresh processes; the real vocabulary (262,144 tokens, 514,906 merges) is rebuilt from the
tests' recorded facts. Generation is compared with a loop that calls llama_decode and nothing else, in turns.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

import gemma4_quant as gq
from gemma4_quant.codecs import compile_kernels
from gemma4_quant.measuring.speed_plan import SpeedPlan
from gemma4_quant.measuring.speed_runs import measure_speeds
from gemma4_quant.progress import SilentProgress
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from real_vocabulary import write_real_vocabulary_checkpoint

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-gemma4-e"
KERNELS = (gq.GgmlType.Q4_K, gq.GgmlType.Q6_K)
N_TOKENS = 100

VOCABULARY = """
import sys, time
from pathlib import Path
from gemma4_quant.formats.checkpoint import open_checkpoint
from gemma4_quant.converters.vocabulary import read_tokenizer, read_vocabulary, token_metadata
checkpoint = open_checkpoint(Path(sys.argv[1]))
started = time.perf_counter(), time.process_time()
token_metadata(read_vocabulary(read_tokenizer(checkpoint)), frozenset())
print(time.perf_counter() - started[0], time.process_time() - started[1])
"""

OPENING = """
import sys, time
from pathlib import Path
from gemma4_quant.source import open_gguf
started = time.perf_counter(), time.process_time()
open_gguf(Path(sys.argv[1]))
print(time.perf_counter() - started[0], time.process_time() - started[1])
"""

CACHED_KERNELS = """
import time
started = time.perf_counter(), time.process_time()
import gemma4_quant.quantization
from gemma4_quant.codecs import compile_kernels
from gemma4_quant.ggml import GgmlType
compile_kernels([GgmlType.Q4_K, GgmlType.Q6_K])
print(time.perf_counter() - started[0], time.process_time() - started[1])
"""

LOADING = """
import sys, time
from pathlib import Path
from gemma4_quant.runner.weights import LoadedModel
started = time.perf_counter(), time.process_time()
LoadedModel(Path(sys.argv[1])).close()
print(time.perf_counter() - started[0], time.process_time() - started[1])
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="runs of each measurement [default: 7]")
    n_runs = parser.parse_args().runs
    compile_kernels(KERNELS)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        checkpoint = write_real_vocabulary_checkpoint(work / "real", indent=2)
        real = gq.convert(checkpoint, work / "real.gguf", "bf16").path
        example = gq.convert(EXAMPLE, work / "example.gguf", "bf16").path
        print("| what | seconds, median | fastest | computing, median |\n|---|---|---|---|")
        row("`gemma4-quant --help`", n_runs, lambda: command("--help"))
        row("`gemma4-quant inspect` of a GGUF with the real vocabulary", n_runs, lambda: command("inspect", real))
        row("opening that GGUF, within it", n_runs, lambda: inside(OPENING, real))
        row("reading and encoding the real tokenizer.json", n_runs, lambda: inside(VOCABULARY, checkpoint))
        row("start of `quantize` with kernels in the cache", n_runs, lambda: inside(CACHED_KERNELS))
        row("loading the example into llama.cpp", n_runs, lambda: inside(LOADING, example))
        row("loading a model with the real vocabulary", n_runs, lambda: inside(LOADING, real))
        generation(example, n_runs)


def row(what: str, n_runs: int, measure: Callable[[], "Duration"]) -> None:
    """Measure and print one line."""
    samples = [measure() for _ in range(n_runs)]
    elapsed = [sample.elapsed_s for sample in samples]
    computing = statistics.median(sample.computing_s for sample in samples)
    print(f"| {what} | {statistics.median(elapsed):.2f} | {min(elapsed):.2f} | {computing:.2f} |", flush=True)


@dataclass(frozen=True)
class Duration:
    """Seconds on the clock, and seconds of all cores."""

    elapsed_s: float
    computing_s: float


def command(*arguments: object) -> Duration:
    """Return how long a whole command takes."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run([sys.executable, "-m", "gemma4_quant", *map(str, arguments)])
    elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Duration(elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def inside(code: str, *arguments: object) -> Duration:
    """Return what a fresh process measures of itself, after its start."""
    elapsed, computing = run([sys.executable, "-c", code, *map(str, arguments)]).split()
    return Duration(float(elapsed), float(computing))


def run(arguments: Sequence[str]) -> str:
    """Run a process that must succeed and return what it prints."""
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


def generation(path: Path, n_runs: int) -> None:
    """Print tokens per second of one thread, ours and of a plain loop."""
    ours, plain = [], []
    plan = SpeedPlan(n_prompt=(), n_generate=(N_TOKENS,), n_threads=(1,), repetitions=1)
    with LoadedModel(path) as model:
        for _ in range(n_runs):
            (speed,) = measure_speeds(path, plan, SilentProgress()).speeds
            ours.append(speed.tokens_per_second)
            plain.append(plain_loop(model))
    print(f"\n| generation of {N_TOKENS} tokens, one thread | tokens/s, median | fastest |\n|---|---|---|")
    for what, samples in (("`bench`", ours), ("llama_decode in a loop", plain)):
        print(f"| {what} | {statistics.median(samples):.0f} | {max(samples):.0f} |")


def plain_loop(model: LoadedModel) -> float:
    """Return tokens per second of llama_decode with a batch that llama.cpp itself allocated."""
    with Session(model, SessionOptions(n_ctx=N_TOKENS, n_batch=N_TOKENS, n_ubatch=N_TOKENS, n_threads=1)) as session:
        batch = llama_cpp.llama_batch_init(1, 0, 1)
        batch.n_tokens, batch.token[0], batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 5, 1, 0, 1
        batch.pos[0] = 0
        llama_cpp.llama_decode(session._handle, batch)  # warm up, as measure_speeds does
        session.clear()
        started = time.perf_counter()
        for position in range(N_TOKENS):
            batch.pos[0] = position
            if llama_cpp.llama_decode(session._handle, batch):
                raise RuntimeError("llama_decode failed")
            llama_cpp.llama_synchronize(session._handle)
        elapsed = time.perf_counter() - started
        llama_cpp.llama_batch_free(batch)
    return N_TOKENS / elapsed


if __name__ == "__main__":
    main()
