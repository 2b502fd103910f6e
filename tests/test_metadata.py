"""Metadata values against the gguf package, in both directions."""

import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_quant.errors import GgufError
from gemma4_quant.metadata import (
    Value,
    ValueType,
    boolean,
    float32,
    get_int,
    get_string,
    int32,
    numbers,
    scalar_bytes,
    string,
    strings,
    uint16,
    uint32,
    uint64,
)
from gemma4_quant.source import open_model

_INTEGERS = {
    ValueType.UINT8: (0, 2**8 - 1),
    ValueType.INT8: (-(2**7), 2**7 - 1),
    ValueType.UINT16: (0, 2**16 - 1),
    ValueType.INT16: (-(2**15), 2**15 - 1),
    ValueType.UINT32: (0, 2**32 - 1),
    ValueType.INT32: (-(2**31), 2**31 - 1),
    ValueType.UINT64: (0, 2**64 - 1),
    ValueType.INT64: (-(2**63), 2**63 - 1),
}

_SINGLE: Mapping[ValueType, Callable[[Any], Value]] = {
    ValueType.UINT16: uint16,
    ValueType.UINT32: uint32,
    ValueType.INT32: int32,
    ValueType.UINT64: uint64,
    ValueType.FLOAT32: float32,
    ValueType.BOOL: boolean,
    ValueType.STRING: string,
}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def items_of(kind: ValueType) -> st.SearchStrategy[Any]:
    if kind in _INTEGERS:
        return st.integers(*_INTEGERS[kind])
    if kind is ValueType.BOOL:
        return st.booleans()
    if kind is ValueType.STRING:
        return TEXT
    return st.floats(width=32 if kind is ValueType.FLOAT32 else 64, allow_nan=False)


ITEM_TYPES = [kind for kind in ValueType if kind is not ValueType.ARRAY]


@st.composite
def typed_scalars(draw: st.DrawFn) -> tuple[ValueType, Any]:
    kind = draw(st.sampled_from(ITEM_TYPES))
    return kind, draw(items_of(kind))


@st.composite
def typed_arrays(draw: st.DrawFn) -> tuple[ValueType, list[Any]]:
    kind = draw(st.sampled_from(ITEM_TYPES))
    return kind, draw(st.lists(items_of(kind), min_size=1, max_size=12))


def write_with_gguf(path: Path, add: Callable[[GGUFWriter], None]) -> None:
    writer = GGUFWriter(path, "gemma4")
    add(writer)
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@settings(deadline=None)
@given(scalars=st.lists(typed_scalars(), max_size=6), arrays=st.lists(typed_arrays(), max_size=6))
def test_values_that_gguf_writes_are_read_back(
    scalars: list[tuple[ValueType, Any]], arrays: list[tuple[ValueType, list[Any]]]
) -> None:
    def add(writer: GGUFWriter) -> None:
        for at, (kind, value) in enumerate(scalars):
            writer.add_key_value(f"scalar.{at}", value, GGUFValueType(kind))
        for at, (kind, values) in enumerate(arrays):
            writer.add_key_value(f"array.{at}", values, GGUFValueType.ARRAY, GGUFValueType(kind))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.gguf"
        write_with_gguf(path, add)
        metadata = open_model(path).metadata
    for at, (kind, value) in enumerate(scalars):
        read = metadata[f"scalar.{at}"]
        assert (read.type, read.item, read.decode()) == (kind, None, value)
    for at, (kind, values) in enumerate(arrays):
        read = metadata[f"array.{at}"]
        assert (read.type, read.item, read.count, read.decode()) == (ValueType.ARRAY, kind, len(values), values)


@settings(deadline=None)
@given(scalar=typed_scalars(), array=typed_arrays())
def test_values_that_we_make_are_read_by_gguf(
    scalar: tuple[ValueType, Any], array: tuple[ValueType, list[Any]]
) -> None:
    kind, value = scalar
    item, values = array
    made = {"array": strings(values) if item is ValueType.STRING else numbers(item, values)}
    if kind in _SINGLE:
        made["scalar"] = _SINGLE[kind](value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.gguf"
        path.write_bytes(_file_with(made))
        reader = GGUFReader(path)
        assert reader.fields["array"].types == [GGUFValueType.ARRAY, GGUFValueType(item)]
        assert reader.fields["array"].contents() == values
        if kind in _SINGLE:
            assert reader.fields["scalar"].types == [GGUFValueType(kind)]
            assert reader.fields["scalar"].contents() == value
        del reader  # it maps the file, which Windows cannot delete then


def _file_with(metadata: Mapping[str, Value]) -> bytes:
    """Return a GGUF file without tensors (docs/gguf.md of ggml: magic, version, counts, then key and value)."""
    entries = b"".join(
        struct.pack("<Q", len(key)) + key.encode() + value.encoded() for key, value in metadata.items()
    )
    head = struct.pack("<IIQQ", gguf.GGUF_MAGIC, 3, 0, len(metadata)) + entries
    return head + bytes(-len(head) % gguf.GGUF_DEFAULT_ALIGNMENT)


def test_value_types_have_the_numbers_of_the_gguf_package() -> None:
    assert {kind.name: kind.value for kind in ValueType} == {kind.name: kind.value for kind in GGUFValueType}


@pytest.mark.parametrize("kind", [kind for kind in ITEM_TYPES if kind is not ValueType.STRING])
def test_scalars_have_the_size_of_the_gguf_package(kind: ValueType) -> None:
    assert scalar_bytes(kind) == struct.calcsize("<" + GGUFWriter._simple_value_packing[GGUFValueType(kind)])


def test_arrays_of_numbers_are_views_of_their_bytes() -> None:
    value = numbers(ValueType.INT32, [5, -6])
    assert value.array().tolist() == [5, -6]
    assert np.shares_memory(value.array(), np.frombuffer(value.data, np.uint8))


@pytest.mark.parametrize("value", [strings(["a"]), uint32(1), string("a")])
def test_only_arrays_of_numbers_have_an_array(value: Value) -> None:
    with pytest.raises(GgufError, match=f"not {value.describe_type()}".replace("[", r"\[")):
        value.array()


def test_strings_may_be_given_as_bytes_that_are_not_utf_8() -> None:
    """Byte tokens of a vocabulary are copied as they are; only their display is repaired."""
    value = strings([b"\xff\xfe", "é"])
    assert value.data == struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<Q", 2) + "é".encode()
    assert value.decode() == ["��", "é"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (uint32(1), "uint32"),
        (string(""), "string"),
        (strings(["a", "b"]), "string[2]"),
        (numbers(ValueType.BOOL, []), "bool[0]"),
    ],
)
def test_types_are_described_for_people(value: Value, text: str) -> None:
    assert value.describe_type() == text


def test_getters_return_values_or_the_default() -> None:
    metadata = {"n": uint32(7), "name": string("gemma")}
    assert (get_int(metadata, "n"), get_int(metadata, "n", 1), get_int(metadata, "m", 1)) == (7, 7, 1)
    assert (get_string(metadata, "name"), get_string(metadata, "nickname", "g")) == ("gemma", "g")


@pytest.mark.parametrize("value", [string("7"), boolean(True), float32(7.0), numbers(ValueType.INT32, [7])])
def test_an_integer_of_another_type_is_refused(value: Value) -> None:
    with pytest.raises(GgufError, match=r"^n is .*, not an integer"):
        get_int({"n": value}, "n", 1)


@pytest.mark.parametrize("value", [uint32(7), strings(["a"])])
def test_a_string_of_another_type_is_refused(value: Value) -> None:
    with pytest.raises(GgufError, match=r"^name is .*, not a string"):
        get_string({"name": value}, "name", "x")


def test_missing_keys_are_named() -> None:
    with pytest.raises(GgufError, match=r"no gemma4\.block_count"):
        get_int({}, "gemma4.block_count")
    with pytest.raises(GgufError, match=r"no general\.name"):
        get_string({}, "general.name")
