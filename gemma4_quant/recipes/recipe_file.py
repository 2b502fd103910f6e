"""Recipes as files: TOML that people read, edit and pass back, with the reason beside every type."""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gemma4_quant import __version__
from gemma4_quant.errors import Gemma4QuantError, InputError, listed
from gemma4_quant.ggml import GgmlType, parse_file_type, parse_ggml_type
from gemma4_quant.recipes.overrides import MetadataOverride, checked_override
from gemma4_quant.recipes.recipe import Choice, Floor, PadMode, QatMode, Reason, Recipe, TensorTypeOverride
from gemma4_quant.writing.destination import cannot_write

T = TypeVar("T")

_MAX_BYTES = 16 << 20  # a recipe that names every tensor of a large model has 100 kB

_INTRODUCTION = f"""\
# A recipe of gemma4-quant {__version__}: edit it and pass it back with --recipe.
# The type of a tensor is what says something of it first: [tensors] (its whole name), output_tensor_type and
# token_embedding_type, [patterns] (regular expressions found in its name, in this order), the mixture of file_type.
# [[floors]] hold for that mixture only. Lines that are deleted leave the tensor to what comes after.
"""


def render_recipe(recipe: Recipe, choices: Iterable[Choice] = ()) -> str:
    """Return a recipe as TOML.

    choices: what the recipe chose for a model; with them every tensor is written down by name, and why.
    """
    lines = [_INTRODUCTION, f'file_type = "{recipe.file_type.name.lower()}"']
    lines += [f"{name} = true" for name in ("pure", "leave_output_tensor") if getattr(recipe, name)]
    for name in ("output_tensor_type", "token_embedding_type"):
        if (kind := getattr(recipe, name)) is not None:
            lines.append(f"{name} = {_quoted(kind)}")
    lines.append(
        f'qat = "{recipe.qat.value}"  # auto keeps tensors on a trained grid where the file type can, on, off'
    )
    lines.append(
        f'pad_ffn = "{recipe.pad_ffn.value}"  # auto pads feed-forward widths where that saves bytes, on, off'
    )
    lists = {name: getattr(recipe, name) for name in ("prune_layers", "include_weights", "exclude_weights")}
    lines += [f"{name} = [{', '.join(map(_scalar, values))}]" for name, values in lists.items() if values]
    if recipe.overrides:
        lines += ["", "[metadata]", *(f"{_text(each.key)} = {_scalar(each.value)}" for each in recipe.overrides)]
    if recipe.tensor_types:
        lines += ["", "[patterns]"]
        lines += [f"{_text(option.pattern.pattern)} = {_quoted(option.type)}" for option in recipe.tensor_types]
    lines += _tensor_lines(recipe, choices)
    for floor in recipe.floors:
        lines += ["", "[[floors]]", f"pattern = {_text(floor.pattern.pattern)}", f"type = {_quoted(floor.type)}"]
        if floor.from_bits:
            lines.append(f"from_bits = {floor.from_bits}  # only in files whose own type has so many bits a weight")
        if floor.beside:
            lines.append(f"beside = {_text(floor.beside)}  # only in models with this tensor")
        if floor.why:
            lines.append(f"why = {_text(floor.why)}")
    return "\n".join(lines) + "\n"


def _tensor_lines(recipe: Recipe, choices: Iterable[Choice]) -> list[str]:
    chosen = list(choices)
    lines = [f"{_text(name)} = {_quoted(kind)}" for name, kind in recipe.named_types.items()] if not chosen else []
    for choice in chosen:
        line = f"{_text(choice.name)} = {_quoted(choice.type)}  # {choice.reason.value}"
        if choice.fallback:
            line += f", but its rows are not whole blocks of {choice.wanted.name.lower()}"
        lines.append(f"# {line}" if choice.reason is Reason.KEPT else line)
    return ["", "[tensors]", *lines] if lines else []


def save_recipe(path: Path, recipe: Recipe, choices: Iterable[Choice]) -> None:
    """Write a recipe and what it chose to a file; raises OutputError when it cannot be written."""
    try:
        path.write_text(render_recipe(recipe, choices), encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file; raises InputError saying which key is wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path} is larger than {_MAX_BYTES >> 20} MB and no recipe")
    try:
        return parse_recipe(data.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; give a recipe that --save-recipe wrote") from error
    except Gemma4QuantError as error:
        raise InputError(f"{path}: {error}") from error


def parse_recipe(text: str) -> Recipe:
    """Read a recipe from TOML; raises InputError (or UnsupportedTypeError for a type) saying which key is wrong."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib lets numbers of thousands of digits through to int()
        raise InputError(f"not a recipe: {error}") from error
    if unknown := sorted(table.keys() - _KEYS):
        raise InputError(f"unknown keys {listed(unknown)}; known are {', '.join(sorted(_KEYS))}")
    if "file_type" not in table:
        raise InputError('the recipe has no file_type; add a line such as file_type = "q4_k_m"')
    return Recipe(
        file_type=parse_file_type(_string(table, "file_type")),
        pure=_flag(table, "pure"),
        leave_output_tensor=_flag(table, "leave_output_tensor"),
        output_tensor_type=_optional_type(table, "output_tensor_type"),
        token_embedding_type=_optional_type(table, "token_embedding_type"),
        tensor_types=tuple(
            TensorTypeOverride(_pattern("patterns", text), parse_ggml_type(kind))
            for text, kind in _table(table, "patterns", _as_string).items()
        ),
        named_types={name: parse_ggml_type(kind) for name, kind in _table(table, "tensors", _as_string).items()},
        floors=_floors(table),
        qat=_mode(table, "qat", QatMode),
        pad_ffn=_mode(table, "pad_ffn", PadMode),
        prune_layers=tuple(sorted(set(_list(table, "prune_layers", int)))),
        overrides=tuple(_table(table, "metadata", _override).values()),
        include_weights=tuple(_list(table, "include_weights", str)),
        exclude_weights=tuple(_list(table, "exclude_weights", str)),
    )


_KEYS = frozenset(
    {
        "file_type",
        "pure",
        "leave_output_tensor",
        "output_tensor_type",
        "token_embedding_type",
        "qat",
        "pad_ffn",
        "prune_layers",
        "include_weights",
        "exclude_weights",
        "metadata",
        "floors",
        "patterns",
        "tensors",
    }
)


def _string(table: Mapping[str, Any], key: str) -> str:
    return _as_string(key, table[key])


def _as_string(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{key} is {value!r:.80}, not a string")
    return value


def _flag(table: Mapping[str, Any], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{key} is {value!r:.80}, not true or false")
    return value


def _optional_type(table: Mapping[str, Any], key: str) -> GgmlType | None:
    return parse_ggml_type(_string(table, key)) if key in table else None


def _mode(table: Mapping[str, Any], key: str, modes: type[T]) -> T:
    """Read a mode; a recipe that does not say means what llama-quantize does."""
    text = _as_string(key, table.get(key, "off"))
    try:
        return modes(text)  # type: ignore[call-arg]
    except ValueError:
        raise InputError(f"{key} is {text!r:.80}, not auto, on or off") from None


def _table(table: Mapping[str, Any], key: str, read: Callable[[str, Any], T]) -> dict[str, T]:
    entries = table.get(key, {})
    if not isinstance(entries, dict):
        raise InputError(f"{key} is {entries!r:.80}, not a table such as [{key}]")
    return {name: read(name, value) for name, value in entries.items()}


def _list(table: Mapping[str, Any], key: str, kind: type[T]) -> list[T]:
    values = table.get(key, [])
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise InputError(f"{key} is {values!r:.80}, not a list of {kind.__name__}")
    if kind is int and any(value < 0 for value in values):
        raise InputError(f"{key} is {values!r:.80}, but layers are counted from 0")
    return values


def _override(key: str, value: Any) -> MetadataOverride:
    if not isinstance(value, bool | int | float | str):
        raise InputError(f"{key} in [metadata] is {value!r:.80}, not a number, string, true or false")
    return checked_override(MetadataOverride(key, value))


def _floors(table: Mapping[str, Any]) -> tuple[Floor, ...]:
    entries = table.get("floors", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"floors is {entries!r:.80}, not tables that begin with [[floors]]")
    return tuple(_floor(entry) for entry in entries)


def _floor(entry: Mapping[str, Any]) -> Floor:
    if not {"pattern", "type"} <= entry.keys() <= {"pattern", "type", "why", "from_bits", "beside"}:
        raise InputError(f"a floor has {', '.join(entry) or 'nothing'}; it needs pattern and type, may have the rest")
    from_bits = entry.get("from_bits", 0.0)
    if isinstance(from_bits, bool) or not isinstance(from_bits, int | float):
        raise InputError(f"from_bits of a floor is {from_bits!r:.80}, not a number")
    return Floor(
        _pattern("floors", _string(entry, "pattern")),
        parse_ggml_type(_string(entry, "type")),
        _as_string("why", entry.get("why", "")),
        float(from_bits),
        _as_string("beside", entry.get("beside", "")),
    )


def _pattern(table: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise InputError(f"{text!r} in [{table}] is not a regular expression: {error}") from error


def _quoted(kind: GgmlType) -> str:
    return f'"{kind.name.lower()}"'


def _scalar(value: float | str) -> str:
    """Return a number, boolean or string in TOML."""
    if isinstance(value, str):
        return _text(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _text(text: str) -> str:
    """Return a TOML basic string; its escapes are JSON's, but for DEL, which TOML wants escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
