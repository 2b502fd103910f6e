"""Metadata that the user overrides: `--override-kv KEY=TYPE:VALUE`, as llama-quantize takes it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gemma4_quant.errors import InputError
from gemma4_quant.metadata import Value, ValueType, boolean, float32, numbers, string, uint32
from gemma4_quant.model import Model

_INTEGERS = {
    ValueType.UINT8: (0, 1 << 8),
    ValueType.INT8: (-(1 << 7), 1 << 7),
    ValueType.UINT16: (0, 1 << 16),
    ValueType.INT16: (-(1 << 15), 1 << 15),
    ValueType.UINT32: (0, 1 << 32),
    ValueType.INT32: (-(1 << 31), 1 << 31),
    ValueType.UINT64: (0, 1 << 64),
    ValueType.INT64: (-(1 << 63), 1 << 63),
}

_OF_THE_FILE = ("general.alignment", "general.file_type", "general.quantization_version")
"""Keys that describe how a file is written, which its metadata cannot change."""


@dataclass(frozen=True)
class MetadataOverride:
    """A key and its new value: an int, float, bool or string."""

    key: str
    value: int | float | bool | str


def parse_override(text: str) -> MetadataOverride:
    """Read `KEY=TYPE:VALUE` with TYPE int, float, bool or str; raises InputError saying what is wrong."""
    key, equals, typed = text.partition("=")
    kind, colon, raw = typed.partition(":")
    if not key or not equals or not colon or kind not in ("int", "float", "bool", "str"):
        raise InputError(f"{text!r} is not KEY=TYPE:VALUE with TYPE int, float, bool or str")
    try:
        return checked_override(MetadataOverride(key, _value(kind, raw)))
    except ValueError as error:
        raise InputError(f"{raw!r} in {text!r} is not a value of type {kind}") from error


def checked_override(override: MetadataOverride) -> MetadataOverride:
    """Return an override that may be made; raises InputError for keys that describe how the file is written."""
    if override.key in _OF_THE_FILE or override.key.startswith("split."):
        raise InputError(f"{override.key} says how the file is written and cannot be overridden")
    if isinstance(override.value, float) and not math.isfinite(override.value):
        raise InputError(f"{override.key} cannot be {override.value}")
    return override


def _value(kind: str, raw: str) -> int | float | bool | str:
    if kind == "str":
        return raw
    if kind == "int":
        return int(raw)
    if kind == "bool":
        return {"true": True, "false": False}[raw] if raw in ("true", "false") else _refuse(raw)
    return float(raw)


def _refuse(raw: str) -> bool:
    raise ValueError(raw)


def overridden(model: Model, overrides: Iterable[MetadataOverride]) -> Model:
    """Return the model with other metadata; raises InputError when an integer does not fit the type of its key.

    Integers keep the type their key has; new ones become uint32, as in llama-quantize.
    """
    metadata = dict(model.metadata)
    for override in overrides:
        metadata[override.key] = _encoded(override, metadata.get(override.key))
    return replace(model, metadata=metadata)


def _encoded(override: MetadataOverride, old: Value | None) -> Value:
    value = override.value
    if isinstance(value, bool):
        return boolean(value)
    if isinstance(value, str):
        return string(value)
    if isinstance(value, float):
        return float32(value)
    kind = old.type if old is not None and old.type in _INTEGERS else ValueType.UINT32
    low, high = _INTEGERS[kind]
    if not low <= value < high:
        raise InputError(f"{override.key} is a {kind.name.lower()}, which cannot be {value}")
    return uint32(value) if kind is ValueType.UINT32 else Value(kind, numbers(kind, [value]).data)
