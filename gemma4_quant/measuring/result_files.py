"""Results of a bench as JSON, and back: what is read may be old, cut short, or made to do harm."""

import dataclasses
import functools
import json
import math
import sys
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from gemma4_quant.errors import CheckpointError, ResultsError, shortened
from gemma4_quant.formats.json_input import kind_of, parse_json_object, read_bounded
from gemma4_quant.measuring.results import BenchResult

T = typing.TypeVar("T")

FORMAT = "gemma4-quant bench 1"
"""Names the layout of the JSON; the number goes up when older files can no longer be read."""

MAX_RESULTS_BYTES = 64 << 20
"""Most bytes of a file of results; those of twenty models with all their samples have some 2 MiB."""

_MAX_TEXT = 1 << 16
_MAX_INTEGER = 1 << 62


def to_json(result: BenchResult, *, indent: int | None = 2) -> str:
    """Write results as a JSON object; enumerations become names in lower case.

    Numbers keep all their digits; those that are not finite become null, and are read as NaN.
    """
    return json.dumps({"format": FORMAT, **plain(result)}, indent=indent, allow_nan=False)


def read_results(path: Path) -> BenchResult:
    """Read a file that `bench --json` wrote; raises ResultsError when it is not one."""
    try:
        return from_json(read_bounded(path, MAX_RESULTS_BYTES), str(path))
    except CheckpointError as error:
        raise ResultsError(str(error)) from error


def from_json(data: bytes | str, source: str = "results") -> BenchResult:
    """Parse what `to_json` wrote.

    source: names the document in messages. Raises ResultsError, with the place, for anything that is not of the type
    that the dataclasses in results.py state; keys that are not known are passed over, so that later versions can add.
    """
    raw = data.encode() if isinstance(data, str) else data
    try:
        document = parse_json_object(raw, source, unique_keys=True)
    except CheckpointError as error:
        raise ResultsError(str(error)) from error
    if document.get("format") != FORMAT:
        raise ResultsError(f"{source} is not a bench result of this version ({FORMAT!r}); make one with bench --json")
    return read_as(BenchResult, document, source)


def read_as(kind: type[T], document: dict[str, Any], source: str) -> T:
    """Return a parsed JSON object as a dataclass; raises ResultsError, with the place, for values of other types."""
    return typing.cast("T", _Reader(source).value(kind, document, ""))


def plain(value: Any) -> Any:
    """Turn dataclasses, enumerations and paths into what JSON knows; numbers that are not finite become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Enum):  # before numbers and strings, which some enumerations are too
        return value.name.lower()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


class _Reader:
    """Builds values of declared types from parsed JSON, and says where something else stands."""

    def __init__(self, source: str) -> None:
        self._source = source

    def value(self, kind: Any, value: Any, place: str) -> Any:
        """Return `value` as an instance of the type `kind`."""
        origin = typing.get_origin(kind)
        if origin in (typing.Union, types.UnionType):
            return self._optional(kind, value, place)
        if origin is tuple:
            return self._tuple(typing.get_args(kind), value, place)
        if origin is dict:
            return self._texts(value, place)
        if dataclasses.is_dataclass(kind):
            return self._object(kind, value, place)
        if issubclass(kind, Enum):
            return self._member(kind, value, place)
        return self._scalar(kind, value, place)

    def _optional(self, kind: Any, value: Any, place: str) -> Any:
        if value is None:
            return None
        (inner,) = [option for option in typing.get_args(kind) if option is not types.NoneType]
        return self.value(inner, value, place)

    def _tuple(self, kinds: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            self._fail(place, f"is {kind_of(value)}, not a list")
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            self._fail(place, f"has {len(value)} entries, not {len(kinds)}")
        pairs = zip(kinds, value, strict=True)
        return tuple(self.value(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(pairs))

    def _texts(self, value: Any, place: str) -> dict[str, str]:
        if not isinstance(value, dict):
            self._fail(place, f"is {kind_of(value)}, not an object")
        return {key: self._scalar(str, item, f"{place}.{shortened(key)}") for key, item in value.items()}

    def _object(self, kind: Any, value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            self._fail(place, f"is {kind_of(value)}, not an object")
        hints = _hints(kind)
        arguments = {}
        for field in dataclasses.fields(kind):
            inner = f"{place}.{field.name}" if place else field.name
            if field.name in value:
                arguments[field.name] = self.value(hints[field.name], value[field.name], inner)
            elif field.default is dataclasses.MISSING:
                self._fail(inner, "is missing")
        return kind(**arguments)

    def _member(self, kind: type[Enum], value: Any, place: str) -> Enum:
        if not isinstance(value, str) or value.upper() not in kind.__members__:
            self._fail(place, f"is {kind_of(value)}, not one of {', '.join(kind.__members__).lower()}")
        return kind[value.upper()]

    def _scalar(self, kind: type, value: Any, place: str) -> Any:
        if kind is float and value is None:
            return math.nan  # as `plain` writes what JSON cannot say
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_INTEGER:
            return float(value)
        if kind is Path and isinstance(value, str):
            if "\0" in value:
                self._fail(place, "is no path")
            return Path(self._scalar(str, value, place))
        # bool is a subclass of int, and would pass for one
        if type(value) is not kind:
            self._fail(place, f"is {kind_of(value)}, not {_NAMES[kind]}")
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            self._fail(place, f"has more than {_MAX_TEXT} characters")
        if isinstance(value, int | float) and not abs(value) <= _LARGEST[kind]:
            self._fail(place, "is larger than such a value ever is")
        return value

    def _fail(self, place: str, problem: str) -> NoReturn:
        raise ResultsError(f"{self._source}: {place or 'the document'} {problem}")


_LARGEST: dict[type, float] = {bool: 1, int: _MAX_INTEGER, float: sys.float_info.max}
_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}
