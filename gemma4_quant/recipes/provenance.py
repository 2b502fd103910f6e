"""What a file was made from, in its metadata: keys `gemma4_quant.*`, documented in docs/recipes.md."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from gemma4_quant import __version__
from gemma4_quant.errors import InputError
from gemma4_quant.metadata import Metadata, Value, string, uint32
from gemma4_quant.model import Model
from gemma4_quant.recipes.qat import GridPlan
from gemma4_quant.recipes.recipe import Recipe
from gemma4_quant.recipes.recipe_file import render_recipe

PREFIX = "gemma4_quant."
"""Of all keys written here; those that a source already has are about an earlier file."""


def provenance(
    source: Model, recipe: Recipe, grids: GridPlan, padding: Mapping[str, str], importance: Path | None
) -> dict[str, Value]:
    """Return the keys that say what a file was made from and how. padding: see padding.padded_widths."""
    keys = {
        "version": string(__version__),
        "recipe": string(render_recipe(recipe)),
        "source.name": string(source.path.resolve().name.encode(errors="replace").decode()),
        "source.fingerprint": string(fingerprint(source)),
    }
    if importance is not None:
        keys["imatrix.sha256"] = string(_file_sha256(importance))
    if grids.encoders:
        keys["qat.tensors"] = uint32(len(grids.encoders))
        keys["qat.probed_blocks"] = uint32(grids.n_probed)
        keys["qat.exact_blocks"] = uint32(grids.n_exact)
    for key, change in padding.items():
        keys[f"padded.{key}"] = string(change)
    return {PREFIX + key: value for key, value in keys.items()}


def without_provenance(metadata: Metadata) -> dict[str, Value]:
    """Return metadata without what an earlier run of this tool said about its own source."""
    return {key: value for key, value in metadata.items() if not key.startswith(PREFIX)}


def fingerprint(model: Model) -> str:
    """Return a SHA-256 of a model's metadata, its table of tensors, and the sizes of its files.

    It costs next to nothing, because no weight is read for it; so it tells releases apart, not a flipped bit.
    """
    state = hashlib.sha256()
    for key, value in model.metadata.items():
        state.update(f"{key}\0".encode())
        state.update(value.encoded())
    for tensor in model.tensors:
        state.update(f"{tensor.name}\0{tensor.type.name}\0{tensor.shape}\0".encode())
    sizes = {file.path: file.n_bytes for tensor in model.tensors for file in tensor.source.files}
    state.update(repr(sorted(sizes.values())).encode())
    return state.hexdigest()


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from error
