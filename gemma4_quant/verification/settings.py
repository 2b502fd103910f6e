"""Metadata of a file held against what the converter makes of the checkpoint's config."""

from collections.abc import Iterator
from typing import Any

from gemma4_quant.errors import GgufError
from gemma4_quant.metadata import Metadata, Value, ValueType
from gemma4_quant.verification.findings import Finding, Part

_MAX_SHOWN = 60


def compare_settings(file: Metadata, original: Metadata, prefix: str) -> Part:
    """Compare the architecture and every hyper-parameter, the keys that begin with `prefix`, such as `gemma4.`.

    Recommended sampling that differs is noted; other general keys describe a file and are its author's.
    """
    keys = [key for key in original if key.startswith(prefix)]
    findings = [*_architecture(file, original), *_differences(file, original, keys)]
    extra = [key for key in file if key.startswith(prefix) and key not in original]
    findings += [Finding(key, f"is {shown(file[key])}, and the config calls for no such key") for key in extra]
    sampling = [key for key in {**original, **file} if key.startswith("general.sampling.")]
    findings += [Finding(f.subject, f.problem, is_fault=False) for f in _differences(file, original, sampling)]
    return Part("metadata", len(keys) + 1, "keys", tuple(findings))


def same_value(one: Value, other: Value) -> bool:
    """Tell whether two values mean the same to llama.cpp: whole numbers of any width, one number for every layer."""
    if one == other:
        return True
    if ValueType.STRING in (one.type, other.type, one.item, other.item):
        return False
    first, second = _numbers(one), _numbers(other)
    if len(first) == 1 and second:
        first = first * len(second)
    if len(second) == 1 and first:
        second = second * len(first)
    return _is_real(one) == _is_real(other) and first == second


def shown(value: Value) -> str:
    """Return a value for a message, shortened."""
    if value.type is ValueType.ARRAY and value.count > _MAX_SHOWN:
        return value.describe_type()
    text = str(value.decode())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _numbers(value: Value) -> list[Any]:
    decoded = value.decode()
    return decoded if isinstance(decoded, list) else [decoded]


def _is_real(value: Value) -> bool:
    return (value.item or value.type) in (ValueType.FLOAT32, ValueType.FLOAT64)


def _architecture(file: Metadata, original: Metadata) -> Iterator[Finding]:
    key = "general.architecture"
    if key not in file or key not in original:
        raise GgufError(f"there is no {key}")
    if not same_value(file[key], original[key]):
        yield Finding(key, f"is {shown(file[key])}, not {shown(original[key])}")


def _differences(file: Metadata, original: Metadata, keys: list[str]) -> Iterator[Finding]:
    for key in keys:
        if key not in file:
            yield Finding(key, f"is missing; it should be {shown(original[key])}")
        elif key not in original:
            yield Finding(key, f"is {shown(file[key])}, the checkpoint has none")
        elif not same_value(file[key], original[key]):
            yield Finding(key, f"is {shown(file[key])}, not {shown(original[key])}")
