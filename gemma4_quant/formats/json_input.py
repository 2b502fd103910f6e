"""JSON from files that nobody vouches for: bounded in size and structure, checked for types on the way out."""

import gc
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gemma4_quant.errors import CheckpointError, ConfigError

MAX_CONFIG_BYTES = 4 << 20
"""Configs of released Gemma 4 checkpoints have a few kB; a chat template in one adds some 20 kB."""

MAX_ENTRIES = 2_500_000
"""Brackets, braces and commas of one document. Gemma 4's tokenizer.json has about 1.9 million; each can cost some
70 bytes once parsed, so this bounds the memory."""


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file; raises CheckpointError when it is larger than `max_bytes`."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise CheckpointError(f"{path} is larger than {max_bytes >> 20} MiB, more than such a file ever needs")
    return data


def read_json_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return the JSON object in `path`; raises CheckpointError when it is not one or too large."""
    return parse_json_object(read_bounded(path, max_bytes), str(path))


def parse_json_object(data: bytes, source: str, *, unique_keys: bool = False) -> dict[str, Any]:
    """Parse a JSON object of a checkpoint.

    source: names the document in messages. unique_keys: refuse an object that has a key twice (json keeps the
    last one silently). Raises CheckpointError for anything else than an object, too deep nesting, too many entries.
    """
    try:
        return json_object(data, unique_keys=unique_keys)
    except ValueError as error:
        raise CheckpointError(f"{source} {error}; download the file again") from error


def json_object(data: bytes, *, unique_keys: bool = False) -> dict[str, Any]:
    """Parse a JSON object; raises ValueError with what is wrong, such as `holds a list, not an object`."""
    if data.count(b"[") + data.count(b"{") + data.count(b",") > MAX_ENTRIES:
        raise ValueError(f"has more than {MAX_ENTRIES:,} entries, more than such a file ever needs")
    try:
        with _collector_paused():
            document = json.loads(
                data, parse_constant=_refuse_constant, object_pairs_hook=_unique_object if unique_keys else None
            )
    except RecursionError:
        raise ValueError("is nested too deeply to be what its name says") from None
    except ValueError as error:  # also wrong UTF-8 and numbers of thousands of digits
        raise ValueError(f"is not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"holds {kind_of(document)}, not an object")
    return document


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector still: every few hundred new lists it would walk those that are there already.

    Parsing makes no cycles; with half a million merges in a process that holds much else, walking takes longer.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return result


def kind_of(value: object) -> str:
    """Say what a JSON value is, for messages."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, (int, float)):
        return f"the number {str(value)[:40]}"
    return "a list" if isinstance(value, list) else "an object"


@dataclass(frozen=True)
class Fields:
    """Typed access to a JSON object. A key that is missing or null gives the default, where there is one.

    source: the file, for messages; path: where the object stands in it, such as `rope_parameters.`.
    """

    values: Mapping[str, Any]
    source: str
    path: str = ""

    def __contains__(self, key: str) -> bool:
        """Tell whether `key` is there with a value other than null."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = 2**31 - 1) -> int:
        """Return a whole number in low..high; raises ConfigError for others, or when missing without default."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(key, f"is {kind_of(value)}, not a whole number")
        if not low <= value <= high:
            self.fail(key, f"is {str(value)[:40]}, outside {low}..{high}")
        return value

    def optional_integer(self, key: str, *, low: int = 1, high: int = 2**31 - 1) -> int | None:
        """Return a whole number in low..high, or None when it is missing or null."""
        return self.integer(key, low=low, high=high) if key in self else None

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number above zero; raises ConfigError for others."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(key, f"is {kind_of(value)}, not a number")
        if not 0 < value < 1e38 or not math.isfinite(value):
            self.fail(key, f"is {str(value)[:40]}, not a number above zero that float32 can hold")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean; raises ConfigError for others."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"is {kind_of(value)}, not true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string; raises ConfigError for others."""
        value = self._get(key, default)
        if not isinstance(value, str):
            self.fail(key, f"is {kind_of(value)}, not a text")
        return value

    def sequence(self, key: str) -> Sequence[Any]:
        """Return a list; raises ConfigError for others."""
        value = self._get(key, None)
        if not isinstance(value, list):
            self.fail(key, f"is {kind_of(value)}, not a list")
        return value

    def inner(self, key: str) -> "Fields":
        """Return the object under `key`; raises ConfigError for others."""
        value = self._get(key, None)
        if not isinstance(value, dict):
            self.fail(key, f"is {kind_of(value)}, not an object")
        return Fields(value, self.source, f"{self.path}{key}.")

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise ConfigError for the value of `key`."""
        raise ConfigError(f"{self.source}: {self.path}{key} {problem}")

    def _get(self, key: str, default: object) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            self.fail(key, "is missing")
        return default
