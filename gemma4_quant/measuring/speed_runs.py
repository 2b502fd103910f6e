"""How fast a model reads a prompt and writes an answer: the tests of llama-bench, timed as it times them.

Each test has a context of just the length it needs, and a first run that is not counted. At a depth, the tokens
before are evaluated once and then restored (llama-bench.cpp).
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemma4_quant.cores import n_cores
from gemma4_quant.errors import InputError
from gemma4_quant.measuring.memory import MemoryWatch
from gemma4_quant.measuring.speed import LlamaBuild, ModelSpeeds, Speed, speed_of
from gemma4_quant.measuring.speed_plan import MAX_TOKENS, SpeedPlan, SpeedSettings, SpeedTest
from gemma4_quant.metadata import get_int, get_string
from gemma4_quant.model import Model
from gemma4_quant.progress import Progress
from gemma4_quant.runner.devices import Device, backend_names, chosen_devices, processor_texts
from gemma4_quant.runner.llama_library import source_commit
from gemma4_quant.runner.session import Batch, Session, SessionOptions
from gemma4_quant.runner.thread_pool import ThreadPool
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.source import open_gguf

_SEED = 42


def measure_speeds(path: Path, plan: SpeedPlan, progress: Progress) -> ModelSpeeds:
    """Run the tests of a plan on random tokens; close other models before, because their memory is counted too.

    Raises InputError for plans that cannot be carried out, devices that are not there, and tests longer than the
    model's context; RunError when the model fails.
    """
    plan.check()
    runs = list(plan.runs())
    _refuse_too_long(open_gguf(path), runs)
    for devices in plan.devices:
        chosen_devices(devices)
    progress.start("measure speed", len(runs) * (plan.repetitions + plan.warm_up), "run")
    speeds: list[Speed] = []
    facts = ("", 0, 0)
    try:
        for _, group in groupby(runs, key=lambda run: (run[0].n_gpu_layers, run[0].devices)):
            same = list(group)
            with _Bench(path, same[0][0], plan, progress) as bench:
                facts = bench.facts()
                speeds += [bench.measure(settings, test) for settings, test in same]
    finally:
        progress.finish()
    return ModelSpeeds(path, *facts, n_cores(), llama_build(), tuple(speeds))


def llama_build() -> LlamaBuild:
    """Return which llama.cpp runs here, and on what."""
    cpu, gpu = processor_texts()
    # Libraries know their commit, but not which number of builds it had; 0 is llama.cpp's word for that.
    return LlamaBuild(commit=source_commit(), number=0, cpu=cpu, gpu=gpu, backends=backend_names())


def _refuse_too_long(model: Model, runs: list[tuple[SpeedSettings, SpeedTest]]) -> None:
    architecture = get_string(model.metadata, "general.architecture")
    limit = min(get_int(model.metadata, f"{architecture}.context_length", MAX_TOKENS), MAX_TOKENS)
    too_long = max((test for _, test in runs if test.n_ctx > limit), key=lambda test: test.n_ctx, default=None)
    if too_long is not None:
        raise InputError(f"a speed test of {too_long.n_ctx} tokens is too long for {model.path}; at most {limit} fit")


class _Bench:
    """A loaded model on which tests are run; a context manager."""

    def __init__(self, path: Path, settings: SpeedSettings, plan: SpeedPlan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self._devices = chosen_devices(settings.devices) if settings.n_gpu_layers else ()
        self._free_before = _free_bytes(self._devices)
        self._memory = MemoryWatch()
        self._model = LoadedModel(path, n_gpu_layers=settings.n_gpu_layers, devices=settings.devices)
        self._at_depth: tuple[SpeedSettings, int, npt.NDArray[np.uint8]] | None = None

    def __enter__(self) -> "_Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self._model.close()

    def facts(self) -> tuple[str, int, int]:
        """Return llama.cpp's description, size in bytes, and number of weights."""
        return self._model.description(), self._model.n_bytes(), self._model.n_weights()

    def measure(self, settings: SpeedSettings, test: SpeedTest) -> Speed:
        """Time a test."""
        time.sleep(self._plan.delay_s)
        self._memory.restart()
        started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        n_threads = settings.n_threads or n_cores()
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPool(n_threads))
            session = stack.enter_context(Session(self._model, _options(settings, test, n_threads)))
            session.use_threads(pool)
            if self._plan.warm_up:
                session.run_all(list(self._prompt(test.n_prompt, settings)))
                session.run_all(list(self._steps(min(test.n_generate, 1), test.n_prompt)))
                self._progress.advance(1)
            samples = tuple(self._timed(session, settings, test) for _ in range(self._plan.repetitions))
            return speed_of(
                test,
                settings,
                samples,
                started=started,
                peak_bytes=self._peak_bytes(),
                device_bytes=self._free_before - _free_bytes(self._devices) if self._devices else None,
            )

    def _timed(self, session: Session, settings: SpeedSettings, test: SpeedTest) -> int:
        """Return the nanoseconds of one repetition."""
        prompt = list(self._prompt(test.n_prompt, settings, test.depth))
        steps = list(self._steps(test.n_generate, test.depth + test.n_prompt))
        self._go_to_depth(session, settings, test.depth)
        started = time.perf_counter_ns()
        session.run_all(prompt, waits=False)
        session.run_all(steps)
        elapsed = time.perf_counter_ns() - started
        self._memory.look()
        self._progress.advance(1)
        return elapsed

    def _go_to_depth(self, session: Session, settings: SpeedSettings, depth: int) -> None:
        """Leave the session with `depth` tokens, restored where they have been evaluated before."""
        session.clear()
        kept = self._at_depth
        if kept is not None and kept[:2] == (settings, depth) and session.restore_state(kept[2]):
            return
        if depth:
            session.run_all(list(self._prompt(depth, settings)))
            self._at_depth = settings, depth, session.saved_state()

    def _peak_bytes(self) -> int | None:
        """Return the most memory of model and context; what a depth's state takes is ours, not theirs."""
        peak = self._memory.peak_bytes()
        kept = 0 if self._at_depth is None else self._at_depth[2].nbytes
        return None if peak is None else max(0, peak - kept)

    def _prompt(self, n_tokens: int, settings: SpeedSettings, start: int = 0) -> Iterator[Batch]:
        for i in range(0, n_tokens, settings.n_batch):
            yield self._batch(start + i, min(settings.n_batch, n_tokens - i))

    def _steps(self, n_tokens: int, start: int) -> Iterator[Batch]:
        for position in range(start, start + n_tokens):
            yield self._batch(position, 1)

    def _batch(self, start: int, n_tokens: int) -> Batch:
        """Lay out random tokens from position `start`, the first of a text being BOS; logits for the last only."""
        tokens = np.random.default_rng((_SEED, start)).integers(0, self._model.n_vocab, n_tokens, np.int32)
        if start == 0 and self._model.add_bos:
            tokens[0] = self._model.bos
        wanted = np.zeros(n_tokens, np.int8)
        wanted[-1] = 1
        return Batch(tokens, np.arange(start, start + n_tokens, dtype=np.int32), np.zeros(n_tokens, np.int32), wanted)


def _options(settings: SpeedSettings, test: SpeedTest, n_threads: int) -> SessionOptions:
    n_batch = min(settings.n_batch, test.n_ctx)
    return SessionOptions(
        n_ctx=test.n_ctx,
        n_batch=n_batch,
        n_ubatch=min(settings.n_ubatch, n_batch),
        n_threads=n_threads,
        key_type=settings.key_type,
        value_type=settings.value_type,
        flash_attention=settings.flash_attention,
    )


def _free_bytes(devices: tuple[Device, ...]) -> int:
    """Return the free memory of devices as it is now."""
    return sum(device.free_bytes for device in chosen_devices([device.name for device in devices]))
