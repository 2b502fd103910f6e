"""General metadata: name, size label, licence, tags, sampling, from model card, config and directory name.

The guesses are those of the gguf package (`gguf.Metadata`), as llama.cpp's converter makes them; what it would read
from files without limits is read here and handed over.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma4_quant.errors import CheckpointError
from gemma4_quant.formats.checkpoint import Checkpoint
from gemma4_quant.formats.json_input import read_bounded
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.hub.cache import repository_of
from gemma4_quant.metadata import (
    Metadata,
    Value,
    ValueType,
    boolean,
    float32,
    get_string,
    int32,
    numbers,
    string,
    strings,
    uint32,
)
from gemma4_quant.model import Tensor

logger = logging.getLogger(__name__)

MAX_CARD_BYTES = 4 << 20
MAX_FRONT_MATTER_BYTES = 64 << 10
MAX_CARD_VALUES = 10_000

# key of generation_config.json → attribute of gguf.Metadata and the type it is written in
_SAMPLING: Mapping[str, tuple[str, type]] = {
    "sequence": ("sampling_sequence", str),
    "top_k": ("sampling_top_k", int),
    "top_p": ("sampling_top_p", float),
    "min_p": ("sampling_min_p", float),
    "xtc_probability": ("sampling_xtc_probability", float),
    "xtc_threshold": ("sampling_xtc_threshold", float),
    "temperature": ("sampling_temp", float),
    "penalty_last_n": ("sampling_penalty_last_n", int),
    "repetition_penalty": ("sampling_penalty_repeat", float),
    "penalty_repeat": ("sampling_penalty_repeat", float),
    "mirostat": ("sampling_mirostat", int),
    "mirostat_tau": ("sampling_mirostat_tau", float),
    "mirostat_eta": ("sampling_mirostat_eta", float),
}

_MOST: Mapping[type, float] = {int: 2**31 - 1, float: 3.4e38}  # int32 and float32

_MAKERS: Mapping[ValueType, Callable[[Any], Value]] = {
    ValueType.UINT32: uint32,
    ValueType.INT32: int32,
    ValueType.FLOAT32: float32,
    ValueType.BOOL: boolean,
    ValueType.STRING: string,
}


def general_metadata(
    checkpoint: Checkpoint, tensors: Sequence[Tensor], model_name: str | None, architecture: str, kind: str = "model"
) -> dict[str, Value]:
    """Return the `general.*` keys up to the file type, in the order of llama.cpp's converter.

    model_name: replaces the guessed name. architecture: `general.architecture`. kind: `general.type`. Raises
    CheckpointError when the model card or generation_config.json holds something that cannot be written.
    """
    import gguf

    total, shared, expert, n_experts = parameter_counts(tensors)
    directory = _named_directory(checkpoint.directory)
    card = _read_card(checkpoint)
    hints = {key: value for key, value in checkpoint.config.items() if key == "_name_or_path" and type(value) is str}
    try:
        known = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, hints, directory, total)
        _apply_sampling(known, checkpoint)
        known.name = model_name or known.name or directory.name
        if known.size_label is None and total > 0:
            known.size_label = gguf.size_label(total, shared, expert, n_experts)
        writer = gguf.GGUFWriter(None, architecture)
        writer.add_type(kind)
        known.set_gguf_meta_model(writer)
        return {key: _value(entry) for key, entry in writer.kv_data[0].items()}
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(
            f"the front matter of {checkpoint.directory / 'README.md'} holds something that is no metadata "
            f"({error}); correct or remove it"
        ) from error


def default_file_name(metadata: Metadata, out_type: GgmlType | FileType) -> str:
    """Return the file name that llama.cpp gives a model, projector or adapter (gguf's naming convention)."""
    import gguf

    def known(key: str) -> str | None:
        return get_string(metadata, f"general.{key}") if f"general.{key}" in metadata else None

    is_projector = known("type") == "mmproj"
    kind = "LoRA" if known("type") == "adapter" else None
    size = None if is_projector else known("size_label")
    stem: str = gguf.naming_convention(
        known("name"), known("basename"), known("finetune"), known("version"), size, out_type.name, kind
    )
    # a name from a model card may hold anything; what remains is one plain file name
    plain = "".join("-" if character in '\\/:*?"<>|' or ord(character) < 32 else character for character in stem)
    return f"{'mmproj-' if is_projector else ''}{plain.lstrip('.')[:200]}.gguf"


def parameter_counts(tensors: Sequence[Tensor]) -> tuple[int, int, int, int]:
    """Return all weights, those outside experts, those of one expert, and experts (gguf's size label needs them).

    Of an adapter, pairs of lora_a and lora_b, minus the weights that it changes: so gguf tells that none are whole.
    """
    if tensors and tensors[0].name.endswith(".lora_a"):
        return -sum(b.n_rows * a.n_cols for a, b in zip(tensors[::2], tensors[1::2], strict=True)), 0, 0, 0
    total = sum(tensor.n_weights for tensor in tensors)
    stacked = [tensor for tensor in tensors if "_exps." in tensor.name and len(tensor.shape) >= 3]
    expert = sum(tensor.n_weights // tensor.n_matrices for tensor in stacked)
    n_experts = sum(tensor.n_matrices for tensor in stacked) // len(stacked) if stacked else 0
    return total, total - sum(tensor.n_weights for tensor in stacked), expert, n_experts


def _named_directory(directory: Path) -> Path:
    """Return a path whose name is the model's: of a snapshot in the Hub's cache, the repository's."""
    repository = repository_of(directory)
    if repository is not None:
        return Path(repository)
    return directory.resolve() if directory.name in ("", "..") else directory


def _read_card(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the YAML front matter of README.md, empty when there is none or it is damaged."""
    import yaml  # type: ignore[import-untyped]

    path = checkpoint.find_file("README.md")
    lines = _text_lines(path) if path is not None else []
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    # as gguf.Metadata.load_model_card: "no" as a list entry is Norwegian, tabs are spaces
    front = ("\n".join(lines[1:end]) + "\n").replace("- no\n", '- "no"\n').replace("\t", "  ")
    if len(front) > MAX_FRONT_MATTER_BYTES:
        logger.warning("the front matter of %s is too long to be a model card; it is ignored", path)
        return {}
    try:
        card = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        logger.warning("the front matter of %s is not YAML and is ignored: %s", path, str(error).splitlines()[0])
        return {}
    if not _is_small(card):
        logger.warning("the front matter of %s has too many values to be a model card; it is ignored", path)
        return {}
    return card if isinstance(card, dict) else {}


def _is_small(card: object) -> bool:
    """Tell whether a document has few values, each alias counted as often as it is used: one may hold itself."""
    waiting, n_values = [card], 0
    while waiting and n_values <= MAX_CARD_VALUES:
        value = waiting.pop()
        n_values += 1
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
    return n_values <= MAX_CARD_VALUES


def _text_lines(path: Path) -> list[str]:
    return read_bounded(path, MAX_CARD_BYTES).decode("utf-8", errors="replace").splitlines()


def _apply_sampling(known: Any, checkpoint: Checkpoint) -> None:
    for key, value in (checkpoint.read_json("generation_config.json") or {}).items():
        attribute, kind = _SAMPLING.get(key, (None, None))
        if attribute is None or kind is None or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise CheckpointError(f"generation_config.json: {key} is {str(value)[:40]!r}, not {kind.__name__}")
        if isinstance(value, int | float) and not -_MOST[kind] <= value <= _MOST[kind]:
            raise CheckpointError(f"generation_config.json: {key} is {str(value)[:40]}, too large for a GGUF")
        setattr(known, attribute, value)


def _value(entry: Any) -> Value:
    kind = ValueType(int(entry.type))
    if kind is not ValueType.ARRAY:
        return _MAKERS[kind](entry.value)
    if all(isinstance(item, str) for item in entry.value):
        return strings(entry.value)
    return numbers(ValueType.INT32, entry.value)
