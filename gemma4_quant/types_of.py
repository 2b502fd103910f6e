"""The types that another quantized file of the same model chose, as a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma4_quant.errors import GgufError, InputError, listed
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.metadata import get_int
from gemma4_quant.model import Model, Tensor
from gemma4_quant.recipes.padding import FeedForward, can_be_padded, padded
from gemma4_quant.recipes.recipe import PadMode, Recipe
from gemma4_quant.source import open_gguf


@dataclass(frozen=True)
class CopiedRecipe:
    """A recipe made of another file's types.

    missing: matrices of the model that the other file has not, for which the file type's mixture decides.
    strangers: matrices that only the other file has.
    """

    recipe: Recipe
    missing: tuple[str, ...]
    strangers: tuple[str, ...]


def copy_types(other: Path, model: Model) -> CopiedRecipe:
    """Return a recipe that gives each matrix of `model` the type it has in the GGUF file `other`.

    A file with padded feed-forward layers is followed in that too. Raises InputError when the files' tensors differ
    in shape or share no name, or when `other` does not say its file type.
    """
    copied = open_gguf(other)
    theirs = _matrices(copied)
    ours, pad_ffn = _matrices(model), PadMode.OFF
    if _different(ours, theirs) and not _different(wider := _matrices(_padded(model)), theirs):
        ours, pad_ffn = wider, PadMode.ON
    shared = [name for name in ours if name in theirs]
    if different := _different(ours, theirs):
        name = different[0]
        raise InputError(
            f"{other} is of another model: {listed(different)} ({theirs[name].shape} for {ours[name].shape}, …)"
        )
    if not shared:
        raise InputError(f"{other} shares no tensor with {model.path}")
    types = {name: theirs[name].type for name in shared}
    recipe = Recipe(_file_type(copied, types), named_types=types, pad_ffn=pad_ffn)
    return CopiedRecipe(
        recipe, tuple(name for name in ours if name not in theirs), tuple(name for name in theirs if name not in ours)
    )


def _matrices(model: Model) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in model.tensors if tensor.n_weights > tensor.n_cols}


def _padded(model: Model) -> Model:
    for kind in FeedForward:
        if can_be_padded(model, kind):
            model = padded(model, kind)
    return model


def _different(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in ours.items() if name in theirs and theirs[name].shape != tensor.shape]


def _file_type(copied: Model, types: Mapping[str, GgmlType]) -> FileType:
    try:
        return FileType(get_int(copied.metadata, "general.file_type"))
    except (GgufError, ValueError) as error:
        common = max(set(types.values()), key=list(types.values()).count)
        if common.name in FileType.__members__:
            return FileType[common.name]
        raise InputError(f"{copied.path} does not say its general.file_type; pass --type too") from error
