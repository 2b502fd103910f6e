"""How fast a model reads a prompt and writes an answer: llama-bench's tests `pp` and `tg`.

Each test has a context of just the length it needs, as llama-bench's: a longer one costs time for nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from gemma4_quant.errors import InputError
from gemma4_quant.metadata import get_int, get_string
from gemma4_quant.progress import Progress
from gemma4_quant.runner.session import BATCH_TOKENS, MICRO_BATCH_TOKENS, Batch, Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel

_MAX_TOKENS = 1 << 20  # for models that do not name their context length; four times that of any Gemma 4
_SEED = 42


@dataclass(frozen=True)
class Speed:
    """Result of one test.

    test: llama-bench's name, such as `pp512`. tokens_per_second: mean over repetitions; deviation: their standard
    deviation. samples: tokens per second of each repetition.
    """

    test: str
    tokens_per_second: float
    deviation: float
    samples: tuple[float, ...]


def measure_speed(
    model: LoadedModel,
    progress: Progress,
    *,
    n_prompt: int = 512,
    n_generate: int = 128,
    repetitions: int = 5,
    n_threads: int | None = None,
) -> tuple[Speed | None, Speed | None]:
    """Measure prompt and generation speed on random tokens; a test of 0 tokens is left out (None).

    Raises InputError for impossible counts and for tests longer than the model's context, RunError when the model
    fails.
    """
    if n_prompt < 0 or n_generate < 0 or repetitions < 1:
        raise InputError("speed tests need non-negative token counts and at least one repetition")
    longest, limit = max(n_prompt, n_generate), _longest_test(model)
    if longest > limit:
        raise InputError(f"a speed test of {longest} tokens is too long for {model.path}; at most {limit} fit")
    runs = (repetitions + 1) * (bool(n_prompt) + bool(n_generate))
    progress.start("measure speed", runs, "run")
    try:
        prompt = _measure_prompt(model, progress, n_prompt, repetitions, n_threads) if n_prompt else None
        generation = _measure_generation(model, progress, n_generate, repetitions, n_threads) if n_generate else None
    finally:
        progress.finish()
    return prompt, generation


def _longest_test(model: LoadedModel) -> int:
    metadata = model.file.metadata
    architecture = get_string(metadata, "general.architecture")
    return min(get_int(metadata, f"{architecture}.context_length", _MAX_TOKENS), _MAX_TOKENS)


def _measure_prompt(
    model: LoadedModel, progress: Progress, n_tokens: int, repetitions: int, n_threads: int | None
) -> Speed:
    batches = [
        _batch(model, start, min(BATCH_TOKENS, n_tokens - start)) for start in range(0, n_tokens, BATCH_TOKENS)
    ]
    with Session(model, _options(n_tokens, n_threads)) as session:

        def run() -> None:
            for batch in batches:
                session.run(batch)

        run()
        progress.advance(1)
        return _timed(f"pp{n_tokens}", session, run, n_tokens, repetitions, progress)


def _measure_generation(
    model: LoadedModel, progress: Progress, n_tokens: int, repetitions: int, n_threads: int | None
) -> Speed:
    steps = [_batch(model, position, 1) for position in range(n_tokens)]
    with Session(model, _options(n_tokens, n_threads)) as session:

        def run() -> None:
            for step in steps:
                session.run(step)

        session.run(steps[0])
        progress.advance(1)
        return _timed(f"tg{n_tokens}", session, run, n_tokens, repetitions, progress)


def _options(n_tokens: int, n_threads: int | None) -> SessionOptions:
    return SessionOptions(
        n_ctx=n_tokens,
        n_batch=min(BATCH_TOKENS, n_tokens),
        n_ubatch=min(MICRO_BATCH_TOKENS, n_tokens),
        n_threads=n_threads,
    )


def _batch(model: LoadedModel, start: int, n_tokens: int) -> Batch:
    """Lay out random tokens from position `start`, the first of a text being BOS; logits for the last only."""
    tokens = np.random.default_rng((_SEED, start)).integers(0, model.n_vocab, n_tokens, np.int32)
    if start == 0 and model.add_bos:
        tokens[0] = model.bos
    wanted = np.zeros(n_tokens, np.int8)
    wanted[-1] = 1
    return Batch(tokens, np.arange(start, start + n_tokens, dtype=np.int32), np.zeros(n_tokens, np.int32), wanted)


def _timed(
    test: str, session: Session, run: Callable[[], None], n_tokens: int, repetitions: int, progress: Progress
) -> Speed:
    samples = []
    for _ in range(repetitions):
        session.clear()
        started = time.perf_counter_ns()
        run()
        samples.append(n_tokens / ((time.perf_counter_ns() - started) * 1e-9))
        progress.advance(1)
    return Speed(test, mean(samples), stdev(samples) if repetitions > 1 else 0.0, tuple(samples))
