"""What is in a checkpoint or GGUF file: architecture, metadata, tensors, types, sizes; reads no weights."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.metadata import Metadata, Value, ValueType
from gemma4_quant.source import open_model

_MAX_TEXT = 60
_MAX_ITEMS = 96


@dataclass(frozen=True)
class TensorLine:
    """A tensor in the listing; shape as GGUF writes it, input features first."""

    name: str
    shape: tuple[int, ...]
    type: str
    n_bytes: int


@dataclass(frozen=True)
class TypeTotal:
    """All tensors of one type together."""

    type: str
    n_tensors: int
    n_weights: int
    n_bytes: int


@dataclass(frozen=True)
class Inspection:
    """Summary of a model. n_bytes and bits_per_weight count tensor data, not the header."""

    path: Path
    kind: str
    architecture: str
    name: str
    file_type: str | None
    n_weights: int
    n_bytes: int
    bits_per_weight: float
    metadata: dict[str, Any]
    types: tuple[TypeTotal, ...]
    tensors: tuple[TensorLine, ...]


def inspect(path: Path) -> Inspection:
    """Look into a checkpoint directory or a GGUF file; raises InputError and its kinds as opening it does.

    Long metadata is shortened: a text to its beginning, an array to its type and length.
    """
    model = open_model(path, with_projectors=True)
    n_bytes = sum(tensor.n_bytes for tensor in model.tensors)
    return Inspection(
        path=path,
        kind="checkpoint" if path.is_dir() else "GGUF",
        architecture=str(model.metadata["general.architecture"].decode()),
        name=_text(model.metadata, "general.name"),
        file_type=_file_type(model.metadata) if path.is_file() else None,
        n_weights=model.n_weights,
        n_bytes=n_bytes,
        bits_per_weight=n_bytes * 8 / max(1, model.n_weights),
        metadata={key: _shortened(value) for key, value in model.metadata.items()},
        types=_totals([(tensor.type, tensor.n_weights, tensor.n_bytes) for tensor in model.tensors]),
        tensors=tuple(
            TensorLine(tensor.name, tuple(reversed(tensor.shape)), tensor.type.name, tensor.n_bytes)
            for tensor in model.tensors
        ),
    )


def _totals(lines: list[tuple[GgmlType, int, int]]) -> tuple[TypeTotal, ...]:
    n_tensors: Counter[GgmlType] = Counter()
    n_weights: Counter[GgmlType] = Counter()
    n_bytes: Counter[GgmlType] = Counter()
    for kind, weights, size in lines:
        n_tensors[kind] += 1
        n_weights[kind] += weights
        n_bytes[kind] += size
    return tuple(
        TypeTotal(kind.name, n_tensors[kind], n_weights[kind], n_bytes[kind]) for kind, _ in n_bytes.most_common()
    )


def _text(metadata: Metadata, key: str) -> str:
    value = metadata.get(key)
    return "" if value is None else str(_shortened(value))


def _file_type(metadata: Metadata) -> str | None:
    value = metadata.get("general.file_type")
    number = None if value is None else value.decode()
    return FileType(number).name if isinstance(number, int) and number in set(FileType) else None


def _shortened(value: Value) -> Any:
    if value.type is ValueType.STRING:
        text = str(value.decode())
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… ({len(text):,} characters)"
    if value.type is ValueType.ARRAY and value.count > _MAX_ITEMS:
        return value.describe_type()
    return value.decode()
