"""A first load in a child process: on some files llama.cpp aborts, and that must not end the program that asked.

`preflight` names the reasons that are known and takes no time; this catches the others.
"""

import functools
from pathlib import Path

from gemma4_quant.errors import RunError
from gemma4_quant.limited_process import LimitedProcess, LimitExceededError, Limits
from gemma4_quant.metadata import get_string
from gemma4_quant.model import Model

LIMITS = Limits(seconds=120.0, memory_bytes=64 << 30)
"""A vocabulary of Gemma 4's size takes about a second, twenty on a machine with much else to do. Memory is address
space, of which drivers of GPUs reserve much that they never touch."""


def refuse_what_kills(model: Model) -> None:
    """Raise RunError with llama.cpp's reason when loading the file of `model` fails, crashes or does not end.

    A file that has passed is not tried again while its size and time of change stay the same. Costs about 0.1 s of
    one core, and a second more for Gemma 4's whole vocabulary; reads no weights.
    """
    try:
        stat = model.path.stat()
    except OSError as error:
        raise RunError(f"cannot open {model.path}: {error.strerror}") from error
    # a drafter only runs beside its target
    runs_alone = get_string(model.metadata, "general.architecture") != "gemma4-assistant"
    _try_once(model.path.resolve(), model.path, runs_alone, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _try_once(resolved: Path, path: Path, runs_alone: bool, _n_bytes: int, _modified_ns: int) -> None:
    try:
        with LimitedProcess("gemma4_quant.runner.trial_worker", LIMITS) as worker:
            answer = worker.ask({"path": str(resolved), "has_context": runs_alone})
    except LimitExceededError as error:
        raise RunError(f"llama.cpp cannot load {path}: {error}; convert the model again") from error
    if "refused" in answer:
        raise RunError(f"llama.cpp cannot load {path}: {answer['refused']}")
