"""Metadata of any type in any key is a finding or a known error, never a crash."""

import json
import struct
from collections.abc import Iterator

import pytest
from checkpoints import EXAMPLE
from typer.testing import CliRunner

from gemma4_quant.cli.app import app
from gemma4_quant.converters import load_model
from gemma4_quant.errors import Gemma4QuantError
from gemma4_quant.metadata import (
    Metadata,
    Value,
    ValueType,
    boolean,
    float32,
    int32,
    numbers,
    string,
    strings,
    uint16,
    uint32,
    uint64,
)
from gemma4_quant.verification.settings import compare_settings, same_value
from gemma4_quant.verification.vocabulary import compare_vocabulary


def odd_values() -> Iterator[Value]:
    yield from (boolean(True), uint16(3), uint32(2**32 - 1), int32(-1), uint64(2**64 - 1), float32(float("nan")))
    yield from (float32(1.5), string(""), string("\x00\ud7ff\x1b[2J" * 20), strings([]), strings(["a", "a"]))
    yield from (
        numbers(ValueType.INT32, []),
        numbers(ValueType.FLOAT32, [1, 2]),
        numbers(ValueType.BOOL, [True] * 300),
    )
    yield from (Value(ValueType.STRING, b"\x02" + bytes(7) + b"\xff\xfe"), strings([b"\xff", b"\xc3"]))


@pytest.fixture(scope="module")
def original() -> Metadata:
    return load_model(EXAMPLE).metadata


@pytest.mark.parametrize("odd", list(odd_values()), ids=lambda value: f"{value.describe_type()} {value.data[:12]!r}")
def test_any_value_in_any_key_is_survived(odd: Value, original: Metadata) -> None:
    n_found = 0
    for key in original:
        changed = {**original, key: odd}
        try:
            findings = [
                *compare_settings(changed, original, "gemma4.").findings,
                *compare_vocabulary(changed, original),
            ]
        except Gemma4QuantError:
            n_found += 1
        else:
            n_found += bool(findings)
            assert all(len(finding.problem) < 1500 for finding in findings)
    compared = [key for key in original if not key.startswith(("general.", "tokenizer.chat_template"))]
    equal = sum(same_value(odd, original[key]) for key in compared)
    assert n_found >= len(compared) - equal


def test_numbers_mean_the_same_in_every_width() -> None:
    assert same_value(uint32(7), uint64(7))
    assert same_value(uint32(7), numbers(ValueType.INT32, [7, 7, 7]))
    assert same_value(numbers(ValueType.UINT32, [1, 2]), numbers(ValueType.INT64, [1, 2]))
    assert same_value(float32(0.5), Value(ValueType.FLOAT64, struct.pack("<d", 0.5)))
    assert not same_value(uint32(7), numbers(ValueType.INT32, [7, 7, 8]))
    assert not same_value(numbers(ValueType.INT32, [7, 7]), numbers(ValueType.INT32, [7, 7, 7]))
    assert not same_value(uint32(1), float32(1))
    assert not same_value(string("1"), uint32(1))
    assert not same_value(string("a"), string("b"))


def test_json_lists_every_tensor_and_finding(example_bf16: object) -> None:
    result = CliRunner().invoke(app, ["verify", str(example_bf16), "--against", str(EXAMPLE), "--json"])
    assert result.exit_code == 0
    seen = json.loads(result.stdout)
    assert seen["is_ok"] is True
    assert len(seen["tensors"]) == 99
    assert {part["name"] for part in seen["parts"]} == {"tensors", "metadata", "tokenizer", "chat template"}
    assert seen["tensors"][0]["is_exact"] is True
