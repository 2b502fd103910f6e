"""Every failure a user can cause or meet, as one family of exceptions.

The command line turns a `Gemma4QuantError` into one line on stderr and exit code 1; from Python they are
ordinary exceptions. A message says what is wrong, where (file, tensor, key) and what to do about it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Gemma4QuantError(Exception):
    """Base of all known failures."""


class InputError(Gemma4QuantError):
    """A file or directory cannot be used: missing, unreadable, of another kind."""


class CheckpointError(InputError):
    """A Hugging Face checkpoint is incomplete, inconsistent or damaged."""


class HubError(InputError):
    """A checkpoint cannot be had from the Hugging Face Hub: not there, not allowed, not reachable."""


class ConfigError(CheckpointError):
    """A key of config.json is missing, of the wrong type, or describes something llama.cpp cannot run."""


class UnmappedTensorsError(CheckpointError):
    """A checkpoint has tensors without a place in the GGUF, or lacks tensors that must be there."""


class GgufError(InputError):
    """A GGUF file is damaged or not a GGUF file."""


class ImportanceError(InputError):
    """An importance file is damaged or belongs to another model."""


class MomentsError(InputError):
    """A file of second moments is damaged or belongs to another model."""


class TextError(InputError):
    """A text is missing, empty or too short."""


class ResultsError(InputError):
    """A file of earlier measurements, or of stored predictions, is damaged or of another kind."""


class MismatchError(InputError):
    """Models cannot be compared fairly: other tokens, template, shape or training."""


class ChatTemplateError(InputError):
    """A chat template is damaged, takes too much time or memory, or refuses a conversation."""


class UnsupportedTypeError(Gemma4QuantError):
    """A GGML type or file type is unknown, or has no encoder."""


class ShapeError(Gemma4QuantError):
    """A tensor's rows do not fit the blocks of the wanted type, or an array has the wrong shape."""


class NonFiniteError(Gemma4QuantError):
    """A weight or an importance value is NaN or infinite."""


class OutputError(Gemma4QuantError):
    """An output file cannot be written: no space, no permission, would overwrite the input."""


class VerificationError(Gemma4QuantError):
    """A file is not what it should be."""


class RunError(Gemma4QuantError):
    """llama.cpp could not load or run a model."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put `path` before the message of a GgufError that comes from values of a file, and does not say of which."""
    try:
        yield
    except GgufError as error:
        if str(path) in str(error):
            raise
        raise GgufError(f"{path}: {error}") from error


MAX_QUOTED = 200
"""Characters of a name or value from a file that a message quotes."""


def shortened(text: str) -> str:
    """Cut a text from a file for a message."""
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Join names for a message, at most `limit` of them, then how many more there are."""
    all_names = list(names)
    shown = ", ".join(shortened(name) for name in all_names[:limit])
    rest = len(all_names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown
