"""Trying a model together with its projector and drafter, in a child process that llama.cpp's aborts may end."""

from dataclasses import dataclass
from pathlib import Path

from gemma4_quant.errors import RunError, listed
from gemma4_quant.limited_process import LimitedProcess, LimitExceededError, Limits

_SECONDS = 120.0
_ROOM_BYTES = 4 << 30
"""Address space beside the projector, whose weights are read: see trial.LIMITS."""


@dataclass(frozen=True)
class Companions:
    """What llama.cpp can do with the files: see pictures, hear sound, draft tokens."""

    sees: bool
    hears: bool
    drafts: bool


def try_together(model: Path, projector: Path | None = None, drafter: Path | None = None) -> Companions:
    """Load the files as llama.cpp's tools do: the model, its projector on it, its drafter on its context.

    Weights are read of the projector only. Raises RunError with llama.cpp's reason when one does not load, or does
    not go with the model.
    """
    files = {"model": model, "projector": projector, "drafter": drafter}
    request = {kind: str(path.resolve()) for kind, path in files.items() if path is not None}
    names = listed(path.name for path in files.values() if path is not None)
    n_bytes = 0 if projector is None else projector.stat().st_size
    try:
        limits = Limits(_SECONDS, _ROOM_BYTES + 2 * n_bytes)
        with LimitedProcess("gemma4_quant.runner.companions_worker", limits) as worker:
            answer = worker.ask(request)
    except LimitExceededError as error:
        raise RunError(f"llama.cpp cannot load {names} together: {error}") from error
    if "refused" in answer:
        raise RunError(f"llama.cpp cannot load {names} together: {answer['refused']}")
    return Companions(sees=answer["sees"], hears=answer["hears"], drafts=drafter is not None)
