"""GGUF metadata values: typed, kept in the bytes they have in a file, decoded only when asked.

A real Gemma 4 vocabulary is 262,144 strings and 514,906 merges. Most commands only copy them from one file to
the next, so a value holds its encoded bytes and turns into Python objects on demand.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import Any

import numpy as np

from gemma4_quant.errors import GgufError


class ValueType(IntEnum):
    """Value types of GGUF metadata (`enum gguf_type` in gguf.h)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_DTYPES: dict[ValueType, str] = {
    ValueType.UINT8: "<u1",
    ValueType.INT8: "<i1",
    ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4",
    ValueType.INT32: "<i4",
    ValueType.FLOAT32: "<f4",
    ValueType.BOOL: "<u1",
    ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8",
    ValueType.FLOAT64: "<f8",
}


def scalar_bytes(kind: ValueType) -> int:
    """Return the size of a number or boolean of `kind` in a file."""
    return np.dtype(_DTYPES[kind]).itemsize


@dataclass(frozen=True)
class Value:
    """One metadata value.

    type: the value's type; for an array ARRAY, with `item` the type of its entries and `count` their number.
    data: the bytes as in the file, without type tag; for an array without the item type and count.
    """

    type: ValueType
    data: bytes
    item: ValueType | None = None
    count: int = 0

    def decode(self) -> Any:
        """Return the value as int, float, bool, str, or a list of those."""
        if self.type is not ValueType.ARRAY:
            return self._decode_items(self.type, 1)[0]
        assert self.item is not None
        return self._decode_items(self.item, self.count)

    def array(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Return an array of numbers as a numpy view of its bytes; raises GgufError for other values."""
        if self.type is not ValueType.ARRAY or self.item not in _DTYPES:
            raise GgufError(f"an array of numbers was expected, not {self.describe_type()}")
        return np.frombuffer(self.data, _DTYPES[self.item])

    def encoded(self) -> bytes:
        """Return the value as it follows its key in a file: type tag, then data."""
        if self.type is not ValueType.ARRAY:
            return struct.pack("<I", self.type) + self.data
        assert self.item is not None
        return struct.pack("<IIQ", self.type, self.item, self.count) + self.data

    def describe_type(self) -> str:
        """Return the type for people, such as `uint32` or `string[262144]`."""
        if self.item is None:
            return self.type.name.lower()
        return f"{self.item.name.lower()}[{self.count}]"

    def _decode_items(self, kind: ValueType, count: int) -> list[Any]:
        if kind is ValueType.STRING:
            return _decode_strings(self.data, count)
        numbers = np.frombuffer(self.data, _DTYPES[kind], count)
        return list((numbers != 0).tolist() if kind is ValueType.BOOL else numbers.tolist())


def _decode_strings(data: bytes, count: int) -> list[str]:
    strings = []
    at = 0
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        strings.append(data[at + 8 : at + 8 + length].decode("utf-8", errors="replace"))
        at += 8 + length
    return strings


def _encode_string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def uint32(number: int) -> Value:
    """Make a UINT32 value."""
    return Value(ValueType.UINT32, struct.pack("<I", number))


def int32(number: int) -> Value:
    """Make an INT32 value."""
    return Value(ValueType.INT32, struct.pack("<i", number))


def uint16(number: int) -> Value:
    """Make a UINT16 value."""
    return Value(ValueType.UINT16, struct.pack("<H", number))


def uint64(number: int) -> Value:
    """Make a UINT64 value."""
    return Value(ValueType.UINT64, struct.pack("<Q", number))


def float32(number: float) -> Value:
    """Make a FLOAT32 value, rounded to nearest."""
    return Value(ValueType.FLOAT32, struct.pack("<f", number))


def boolean(flag: bool) -> Value:
    """Make a BOOL value."""
    return Value(ValueType.BOOL, struct.pack("<?", flag))


def string(text: str) -> Value:
    """Make a STRING value (UTF-8)."""
    return Value(ValueType.STRING, _encode_string(text))


_AT_ONCE = 1 << 14
"""Strings encoded together: no step of Python for each, as a vocabulary has 777,050 tokens and merges."""


def _encode_strings(texts: Sequence[str | bytes]) -> bytes:
    raw = [text if isinstance(text, bytes) else text.encode() for text in texts]
    lengths = {n_bytes: struct.pack("<Q", n_bytes) for n_bytes in set(map(len, raw))}
    return b"".join(chain.from_iterable(zip(map(lengths.__getitem__, map(len, raw)), raw, strict=True)))


def strings(texts: Sequence[str | bytes]) -> Value:
    """Make an array of STRING values."""
    data = b"".join([_encode_strings(texts[at : at + _AT_ONCE]) for at in range(0, len(texts), _AT_ONCE)])
    return Value(ValueType.ARRAY, data, ValueType.STRING, len(texts))


def numbers(kind: ValueType, values: Iterable[float] | np.ndarray[Any, np.dtype[Any]]) -> Value:
    """Make an array of numbers or booleans of `kind`."""
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), _DTYPES[kind])
    return Value(ValueType.ARRAY, array.tobytes(), kind, array.size)


Metadata = Mapping[str, Value]
"""Metadata of a model in file order; keys are GGUF keys such as `gemma4.block_count`."""


def get_int(metadata: Metadata, key: str, default: int | None = None) -> int:
    """Return an integer value; raises GgufError when it is missing (and no default) or not an integer."""
    value = metadata.get(key)
    if value is None:
        if default is None:
            raise GgufError(f"the metadata has no {key}")
        return default
    number = value.decode()
    if isinstance(number, bool) or not isinstance(number, int):
        raise GgufError(f"{key} is {value.describe_type()}, not an integer")
    return number


def get_string(metadata: Metadata, key: str, default: str | None = None) -> str:
    """Return a string value; raises GgufError when it is missing (and no default) or not a string."""
    value = metadata.get(key)
    if value is None:
        if default is None:
            raise GgufError(f"the metadata has no {key}")
        return default
    text = value.decode()
    if not isinstance(text, str):
        raise GgufError(f"{key} is {value.describe_type()}, not a string")
    return text
