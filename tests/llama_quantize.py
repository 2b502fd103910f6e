"""The types that llama.cpp itself chooses: its quantizer run dry, read from its log."""

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

from gemma4_quant.ggml import GgmlType
from gemma4_quant.recipes.recipe import Recipe

_TENSOR = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[.*\], type = +(\w+), size = [^(\n]*(?:\((\w+)\))?$", re.MULTILINE)


@dataclass(frozen=True)
class DryRun:
    """What llama.cpp would write. types: by tensor name, None when it refuses the file type for this model."""

    types: dict[str, GgmlType] | None
    requires_importance: bool


def dry_run(path: Path, recipe: Recipe) -> DryRun:
    """Let llama.cpp choose types for the file at `path`; importance is one made-up entry when the recipe has it."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(recipe.file_type)
    params.dry_run = True
    params.nthread = 1
    params.pure = recipe.pure
    params.quantize_output_tensor = not recipe.leave_output_tensor
    if recipe.output_tensor_type is not None:
        params.output_tensor_type = int(recipe.output_tensor_type)
    if recipe.token_embedding_type is not None:
        params.token_embedding_type = int(recipe.token_embedding_type)
    overrides = [(option.pattern.pattern.encode(), int(option.type)) for option in recipe.tensor_types]
    override_array = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))(*overrides)
    params.tt_overrides = override_array
    ones = (ctypes.c_float * 1)(1.0)
    importance = (llama_cpp.llama_model_imatrix_data * 2)((b"made.up", ones, 1))
    if recipe.has_importance:
        params.imatrix = importance
    pruned = (ctypes.c_int32 * (len(recipe.prune_layers) + 1))(*recipe.prune_layers, -1)
    if recipe.prune_layers:
        params.prune_layers = pruned
    with _log() as lines:
        code = llama_cpp.llama_model_quantize(str(path).encode(), b"", ctypes.byref(params))
    return _read_log("".join(lines)) if code == 0 else DryRun(None, requires_importance=False)


def _read_log(log: str) -> DryRun:
    types = {name: GgmlType[(new or old).upper()] for name, old, new in _TENSOR.findall(log)}
    return DryRun(types, requires_importance="will require an imatrix" in log)


@contextmanager
def _log() -> Iterator[Sequence[str]]:
    """Collect llama.cpp's log, then give it back to whoever had it."""
    pieces: list[str] = []

    @llama_cpp.llama_log_callback
    def collect(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        pieces.append(text.decode())

    previous, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(previous), ctypes.byref(data))
    llama_cpp.llama_log_set(collect, ctypes.c_void_p())
    try:
        yield pieces
    finally:
        llama_cpp.llama_log_set(previous, data)
