"""adapter_model.safetensors: the matrices of an adapter by the module they belong to."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma4_quant.converters.lora.settings import Settings, read_settings
from gemma4_quant.converters.places import FLOAT_TYPES
from gemma4_quant.errors import CheckpointError, listed
from gemma4_quant.formats.checkpoint import find_checkpoint_file
from gemma4_quant.formats.safetensors_header import StoredTensor, read_header
from gemma4_quant.model import DataFile

WEIGHTS_NAME = "adapter_model.safetensors"

MAX_NAME = 256

STACKS = ("gate_up_proj", "down_proj")
"""Parameters of a module of experts, each a matrix for every expert."""

TOWERS = re.compile(r"(?:^|[._])(?:vision|audio)[._]")
"""Searched in names of modules outside the text model."""

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+?)(?P<nested>(?:\.base_layer)*)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.weight)?"
)


@dataclass(frozen=True)
class Factors:
    """Two factors of a module's change, B · A.

    module: its name in the model, as the adapter has it. a: (rank, n_in), for embeddings (rank, n_tokens), for
    stacked experts (n_experts · rank, n_in). b: (n_out, rank), (width, rank), or (n_out, rank · n_experts).
    """

    module: str
    a: StoredTensor
    b: StoredTensor
    is_embedding: bool


@dataclass(frozen=True)
class Adapter:
    """An opened adapter. whole: tensors that were trained as a whole and replace those of the base, by name."""

    directory: Path
    settings: Settings
    factors: Sequence[Factors]
    whole: Mapping[str, StoredTensor]


def open_adapter(directory: Path) -> Adapter:
    """Open the adapter that PEFT saved in `directory`; no weight is read.

    Raises CheckpointError when a file is missing or damaged, a factor lacks its other, or the adapter does something
    else than add low-rank products and replace tensors.
    """
    settings = read_settings(directory)
    path = find_checkpoint_file(directory, WEIGHTS_NAME)
    if path is None:
        pickled = (directory / "adapter_model.bin").exists()
        hint = "; save the adapter again with safe_serialization=True" if pickled else ""
        raise CheckpointError(f"{directory} has no {WEIGHTS_NAME}{hint}")
    stored = read_header(DataFile(path))
    _refuse_unusable(stored, path)
    sides: dict[tuple[str, str, bool], dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for tensor in stored.values():
        name = tensor.name.removeprefix(_PREFIX)
        factor = _FACTOR.fullmatch(name)
        if factor is None:
            whole[name.replace(".base_layer.", ".")] = tensor
        else:
            key = (factor["module"], factor["nested"], factor["kind"] is not None)
            sides.setdefault(key, {})[factor["side"]] = tensor
    lonely = [module + nested for (module, nested, _), pair in sides.items() if len(pair) < 2]
    if lonely:
        raise CheckpointError(f"{path}: {len(lonely)} modules have only one of lora_A and lora_B: {listed(lonely)}")
    factors = [
        Factors(module, pair["A"], pair["B"], is_embedding) for (module, _, is_embedding), pair in sides.items()
    ]
    _check_shapes(factors, path)
    return Adapter(directory, settings, factors, whole)


def _refuse_unusable(stored: Mapping[str, StoredTensor], path: Path) -> None:
    if not stored:
        raise CheckpointError(f"{path} holds no tensors")
    problems = {
        "are DoRA magnitudes": [name for name in stored if "lora_magnitude_vector" in name],
        "are biases": [name for name in stored if name.endswith(".bias")],
        "are tokens trained one by one": [name for name in stored if "trainable_tokens" in name],
        "have names longer than a module's": [name[:60] for name in stored if len(name) > MAX_NAME],
        "are not stored as F32, F16 or BF16": [
            f"{name} ({tensor.dtype})" for name, tensor in stored.items() if tensor.dtype not in FLOAT_TYPES
        ],
    }
    found = [f"{len(names)} tensors {what}: {listed(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"{path}: {'; '.join(found)}. This tool applies plain LoRA only; merge the adapter with PEFT "
            "(merge_and_unload) and convert the result"
        )


def _check_shapes(factors: Sequence[Factors], path: Path) -> None:
    wrong = [
        f"{pair.module} has {list(pair.a.shape)} and {list(pair.b.shape)}"
        for pair in factors
        if not (len(pair.a.shape) == len(pair.b.shape) == 2 and pair.a.shape[0] == pair.b.shape[1])
        or 0 in (*pair.a.shape, *pair.b.shape)
    ]
    if wrong:
        raise CheckpointError(f"{path}: {len(wrong)} modules have no factors of a matrix: {listed(wrong)}")
