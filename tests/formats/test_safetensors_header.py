"""The safetensors reader against the format's own library, and against headers that lie."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import EXAMPLE, write_safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from gemma4_quant.errors import CheckpointError
from gemma4_quant.formats.safetensors_header import ITEM_BYTES, StoredTensor, read_header
from gemma4_quant.model import DataFile

FIRST = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
SECOND = {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]}


def write_raw(path: Path, header: bytes, data: bytes = bytes(24), length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def read(path: Path) -> dict[str, StoredTensor]:
    return read_header(DataFile(path))


def test_the_example_reads_as_the_safetensors_library_reads_it() -> None:
    for path in sorted(EXAMPLE.glob("*.safetensors")):
        ours = read(path)
        with safe_open(path, framework="np") as theirs:
            assert list(ours) == sorted(theirs.keys())
            for name, tensor in ours.items():
                part = theirs.get_slice(name)
                assert (tensor.dtype, list(tensor.shape)) == (part.get_dtype(), part.get_shape())


def test_data_is_found_where_the_safetensors_library_finds_it(tmp_path: Path) -> None:
    weights = np.arange(12, dtype="<f4").reshape(3, 4)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"b": ("F32", (3, 4), weights.tobytes()), "a": ("U8", (3,), b"xyz")})
    with safe_open(path, framework="np") as theirs:
        assert np.array_equal(theirs.get_tensor("b"), weights)
    stored = read(path)["b"]
    assert stored.file.read(stored.offset, stored.n_bytes) == weights.tobytes()


def test_empty_tensors_and_scalars_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"empty": ("F32", (0, 4), b""), "scalar": ("F32", (), bytes(4))})
    assert {name: tensor.shape for name, tensor in read(path).items()} == {"empty": (0, 4), "scalar": ()}


def entry(**changes: Any) -> bytes:
    return json.dumps({"a": {**FIRST, **changes}, "b": SECOND}).encode()


def second(**changes: Any) -> bytes:
    return json.dumps({"a": FIRST, "b": {**SECOND, **changes}}).encode()


HOSTILE_HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not valid JSON"),
    "not JSON": (b"PK\x03\x04 zip", "not valid JSON"),
    "a list": (b"[]", "a list, not an object"),
    "a number": (b"7", "the number 7"),
    "wrong UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "cut JSON": (b'{"a": {"dtype": "F32"', "not valid JSON"),
    "a name twice": (b'{"a": %s, "a": %s}' % ((json.dumps(FIRST).encode(),) * 2), "'a' is there twice"),
    "a key twice": (
        b'{"a": {"dtype": "F32", "dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}',
        "'dtype' is there twice",
    ),
    "deep lists": (b"[" * 200_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 200_000, "nested too deeply"),
    "too many entries": (b"{" + b"[],[]," * 1_100_000, "entries"),
    "metadata is a list": (b'{"__metadata__": []}', "__metadata__"),
    "entry is a number": (b'{"a": 1}', "the number 1"),
    "entry is null": (b'{"a": null}', "null"),
    "entry is a list": (b'{"a": []}', "a list"),
    "no dtype": (b'{"a": {"shape": [4], "data_offsets": [0, 16]}}', "dtype"),
    "unknown dtype": (entry(dtype="F33"), "'F33'"),
    "dtype in lower case": (entry(dtype="f32"), "'f32'"),
    "dtype is a number": (entry(dtype=32), "'32'"),
    "dtype is a list": (entry(dtype=["F32"]), "dtype"),
    "no shape": (b'{"a": {"dtype": "F32", "data_offsets": [0, 16]}}', "no shape"),
    "shape is a number": (entry(shape=4), "no shape"),
    "shape is a text": (entry(shape="22"), "no shape"),
    "negative size": (entry(shape=[-2, -2]), "no shape"),
    "fractional size": (entry(shape=[2.0, 2]), "no shape"),
    "boolean size": (entry(shape=[True, 4]), "no shape"),
    "size beyond 64 bits": (entry(shape=[2**64, 1]), "no shape"),
    "size of thousands of digits": (b'{"a": {"dtype": "F32", "shape": [%s]}}' % (b"9" * 5000), "not valid JSON"),
    "product wraps around to 4": (entry(shape=[2**62 + 1, 4]), "needs"),
    "too many dims": (entry(shape=[1] * 9 + [4]), "no shape"),
    "shape too small for the data": (entry(shape=[2, 1]), "needs 8"),
    "no offsets": (b'{"a": {"dtype": "F32", "shape": [4]}}', "no data_offsets"),
    "one offset": (entry(data_offsets=[16]), "no data_offsets"),
    "three offsets": (entry(data_offsets=[0, 8, 16]), "no data_offsets"),
    "offsets reversed": (entry(data_offsets=[16, 0]), "no data_offsets"),
    "negative offsets": (entry(data_offsets=[-16, 0]), "no data_offsets"),
    "fractional offsets": (entry(data_offsets=[0.0, 16.0]), "no data_offsets"),
    "offsets as text": (entry(data_offsets=["0", "16"]), "no data_offsets"),
    "offsets null": (entry(data_offsets=None), "no data_offsets"),
    "offsets beyond 64 bits": (entry(data_offsets=[2**64, 2**64 + 16]), "no data_offsets"),
    "NaN offset": (b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [NaN, 16]}}', "not valid JSON"),
    "overlap": (second(data_offsets=[12, 20]), "overlaps"),
    "same bytes twice": (second(dtype="F32", data_offsets=[0, 16]), "overlaps"),
    "hole": (second(data_offsets=[20, 28]), "hole"),
    "hole at the start": (json.dumps({"b": SECOND}).encode(), "hole"),
    "past the end": (second(shape=[40], data_offsets=[16, 96]), "truncated"),
    "far past the end": (second(shape=[2**60], data_offsets=[16, 16 + 2**61]), "truncated"),
    "bytes left over": (json.dumps({"a": FIRST}).encode(), "8 bytes after its last tensor"),
    "no tensors but data": (b"{}", "24 bytes after its last tensor"),
}


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_a_header_that_lies_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    header, reason = HOSTILE_HEADERS[name]
    path = write_raw(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 700


HOSTILE_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no bytes": (lambda path: path.write_bytes(b""), "too few"),
    "seven bytes": (lambda path: path.write_bytes(bytes(7)), "too few"),
    "length only": (lambda path: path.write_bytes(struct.pack("<Q", 100)), "within its header"),
    "header of no bytes": (lambda path: path.write_bytes(bytes(8)), "not valid JSON"),
    "header beyond the file": (lambda path: write_raw(path, b"{}", length=1000), "within its header"),
    "header of 100 MB and more": (lambda path: write_raw(path, b"{}", length=100_000_001), "100,000,001"),
    "header of 2^64 - 1 bytes": (lambda path: write_raw(path, b"{}", length=2**64 - 1), "not a safetensors file"),
    "a Git LFS pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "not a"),
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_a_file_that_is_no_safetensors_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    write, reason = HOSTILE_FILES[name]
    path = tmp_path / "model.safetensors"
    write(path)
    with pytest.raises(CheckpointError, match=reason):
        read(path)


def test_a_truncated_file_names_what_is_cut_and_the_remedy(tmp_path: Path) -> None:
    whole = write_raw(tmp_path / "model.safetensors", json.dumps({"a": FIRST, "b": SECOND}).encode())
    whole.write_bytes(whole.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"truncated: .* without the end of b; .* fetch it again"):
        read(whole)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_are_read_within_bounds_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    header = json.dumps({"a": FIRST, "b": SECOND, "__metadata__": {"format": "pt"}}).encode()
    original = struct.pack("<Q", len(header)) + header + bytes(24)
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"9", b"0", b"[", b"{", b'"', b",", b"-", b"1e9"]))
        )
    path = tmp_path / "model.safetensors"
    path.write_bytes(mutated)
    try:
        tensors = read(path)
    except CheckpointError:
        return
    for tensor in tensors.values():
        assert tensor.n_bytes == int(np.prod(tensor.shape)) * ITEM_BYTES[tensor.dtype]
        assert 8 <= tensor.offset <= tensor.offset + tensor.n_bytes <= len(mutated)
    # what we accept, the format's own library accepts (it knows fewer dtypes of the newest kinds)
    with safe_open(path, framework="np") as theirs:
        assert sorted(theirs.keys()) == list(tensors)
