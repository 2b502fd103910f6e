"""Open whatever a user names, a checkpoint directory or a GGUF file, as a Model."""

from collections.abc import Sequence
from pathlib import Path

from gemma4_quant.errors import GgufError, InputError, naming, shortened
from gemma4_quant.formats.split_reader import read_model
from gemma4_quant.metadata import get_string
from gemma4_quant.model import Model

ARCHITECTURES = ("gemma4", "gemma4-assistant")
"""Values of `general.architecture` of the models that this tool handles."""

PROJECTOR = "clip"
"""The same for the encoders of pictures and sound that go with a model."""


def open_model(path: Path, *, with_projectors: bool = False, adapters: Sequence[Path] = ()) -> Model:
    """Open a checkpoint directory or a GGUF file; raises InputError and its kinds saying what is wrong.

    with_projectors: take a projector's GGUF file too. adapters: directories of LoRA adapters to merge into a
    checkpoint.
    """
    if not exists(path):
        raise InputError(f"{path} does not exist; give a checkpoint directory or a GGUF file")
    if path.is_dir():
        from gemma4_quant.converters import load_model

        return load_model(path, adapters=adapters)
    if adapters:
        raise InputError(f"{path} is no checkpoint directory, and adapters are merged into those; convert it first")
    return open_gguf(path, with_projectors=with_projectors)


def open_gguf(path: Path, *, with_projectors: bool = False) -> Model:
    """Open a GGUF file of a Gemma 4 model, or all shards of a split one; raises GgufError for any other."""
    if not exists(path) or not path.is_file():
        raise InputError(f"{path} is not a GGUF file; give one made by `gemma4-quant convert`")
    model = read_model(path)
    if "general.architecture" not in model.metadata:
        raise GgufError(f"{path} holds no model: it has no general.architecture")
    with naming(path):
        architecture = get_string(model.metadata, "general.architecture")
    if architecture == PROJECTOR and with_projectors:
        return model
    if architecture == PROJECTOR:
        raise GgufError(
            f"{path} holds a projector, the encoders of pictures and sound, which are used as they are; "
            "give the text model it goes with"
        )
    if architecture not in ARCHITECTURES:
        raise GgufError(
            f"{path} holds a {shortened(architecture)} model; this tool handles Gemma 4 ({', '.join(ARCHITECTURES)})"
        )
    return model


def exists(path: Path) -> bool:
    """Tell whether a file or directory is there; raises InputError when that cannot be found out."""
    try:
        return path.exists()
    except OSError as error:  # a name too long, a directory that may not be read
        raise InputError(f"cannot open {path}: {error.strerror}") from error
