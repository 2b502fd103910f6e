"""Reading GGUF: agreement with the gguf package, and hostile files."""

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma4_quant.errors import GgufError, InputError
from gemma4_quant.formats.gguf_header import TensorInfo, encode_header
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import GgmlType
from gemma4_quant.metadata import Value, ValueType, numbers, string, strings, uint32
from gemma4_quant.source import open_gguf


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file with every kind of metadata and tensors of several types, by the gguf package."""
    path = tmp_path_factory.mktemp("gguf") / "sample.gguf"
    writer = gguf.GGUFWriter(path, "gemma4")
    writer.add_uint32("a.u32", 7)
    writer.add_int32("a.i32", -7)
    writer.add_float32("a.f32", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "héllo <|turn>")
    writer.add_array("a.strings", ["a", "", "▁the", "𝄞"])
    writer.add_array("a.numbers", [1, -2, 3])
    rng = np.random.default_rng(1)
    writer.add_tensor("f32", rng.normal(size=(3, 64)).astype(np.float32))
    writer.add_tensor("f16", rng.normal(size=(2, 5, 32)).astype(np.float16))
    quantized = gguf.quantize(rng.normal(size=(4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_and_tensors_equal_those_of_the_gguf_package(sample: Path) -> None:
    model, reference = read_gguf(sample), gguf.GGUFReader(sample)
    ours = {key: value.decode() for key, value in model.metadata.items()}
    theirs = {key: field.contents() for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert ours == theirs
    assert len(model.tensors) == len(reference.tensors) == 3
    for tensor, expected in zip(model.tensors, reference.tensors, strict=True):
        assert (tensor.name, tensor.type) == (expected.name, expected.tensor_type)
        assert list(reversed(tensor.shape)) == list(expected.shape)
        rows = tensor.source.read_rows(0, tensor.n_rows)
        assert rows.tobytes() == expected.data.tobytes()
        assert tensor.source.read_rows(1, 2).tobytes() == rows[1:2].tobytes()


def test_our_header_is_read_back_by_the_gguf_package(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": string("gemma4"),
        "x.list": numbers(ValueType.INT32, [1, -1]),
        "x.words": strings(["one", "two"]),
    }
    path = tmp_path / "ours.gguf"
    path.write_bytes(encode_header(metadata, [TensorInfo("t", (2, 4), GgmlType.F32, 0)]) + bytes(32))
    reference = gguf.GGUFReader(path)
    assert reference.fields["x.words"].contents() == ["one", "two"]
    assert reference.fields["x.list"].contents() == [1, -1]
    assert list(reference.tensors[0].shape) == [4, 2]


def header(*, version: int = 3, n_tensors: int = 0, n_keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + rest


def text(word: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(word) if length is None else length) + word


def tensor_line(ne: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0, name: bytes = b"t") -> bytes:
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)


HOSTILE = {
    "empty": b"",
    "magic only": b"GGUF",
    "other magic": b"GGML" + bytes(100),
    "version 1": header(version=1) + bytes(64),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
    "2**60 tensors": header(n_tensors=1 << 60),
    "2**63 keys": header(n_keys=1 << 63),
    "key longer than the file": header(n_keys=1, rest=text(b"k", 1 << 40)),
    "key that is not UTF-8": header(n_keys=1, rest=text(b"\xff\xfe") + struct.pack("<II", 4, 1)),
    "unknown value type": header(n_keys=1, rest=text(b"k") + struct.pack("<I", 99) + bytes(8)),
    "array of 2**50 numbers": header(n_keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 50)),
    "array of arrays": header(n_keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(64)),
    "array of 2**50 strings": header(n_keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 50)),
    "string of 2**62 bytes in an array": header(
        n_keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 8, 1) + struct.pack("<Q", 1 << 62)
    ),
    "strings cut short": header(n_keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 8, 3) + text(b"ab") + bytes(4)),
    "same key twice": header(n_keys=2, rest=(text(b"k") + struct.pack("<II", 4, 1)) * 2),
    "no dimensions": header(n_tensors=1, rest=tensor_line(())),
    "five dimensions": header(n_tensors=1, rest=tensor_line((1, 1, 1, 1, 1))),
    "dimension zero": header(n_tensors=1, rest=tensor_line((0,))),
    "shape that overflows": header(n_tensors=1, rest=tensor_line((1 << 40, 1 << 40))),
    "unknown tensor type": header(n_tensors=1, rest=tensor_line(kind=77)),
    "removed tensor type": header(n_tensors=1, rest=tensor_line(kind=4)),
    "row that is not whole blocks": header(n_tensors=1, rest=tensor_line((33,), kind=2)),
    "offset past the end": header(n_tensors=1, rest=tensor_line(offset=1 << 40)) + bytes(256),
    "offset off alignment": header(n_tensors=1, rest=tensor_line(offset=3)) + bytes(512),
    "data cut short": header(n_tensors=1, rest=tensor_line((32, 1000))) + bytes(256),
    "name twice": header(n_tensors=2, rest=tensor_line() + tensor_line(offset=128)) + bytes(512),
    "data that overlaps": header(n_tensors=2, rest=tensor_line() + tensor_line(offset=32, name=b"u")) + bytes(512),
    "name too long": header(n_tensors=1, rest=tensor_line(name=b"n" * 64)) + bytes(512),
    "alignment zero": header(n_keys=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0)) + bytes(64),
    "alignment of a terabyte": header(n_keys=1, rest=text(b"general.alignment") + struct.pack("<IQ", 10, 1 << 40))
    + bytes(64),
    "more tensors than any model": header(n_tensors=1 << 17, rest=bytes(1 << 18)),
    "more keys than any model": header(n_keys=1 << 17, rest=bytes(1 << 18)),
    "more strings than any vocabulary": header(n_keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 23))
    + bytes(1 << 23),
    "alignment as text": header(n_keys=1, rest=text(b"general.alignment") + struct.pack("<I", 8) + text(b"32"))
    + bytes(64),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError) as caught:
        read_gguf(path)
    assert "hostile.gguf" in str(caught.value)


@settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_are_read_or_refused_but_never_crash(sample: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(sample.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 8))
        content[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8) | st.just(b"\xff" * 8) | st.just(bytes(8)))
    path = tmp_path / "mutated.gguf"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        model = read_gguf(path)
    except InputError:
        return
    for value in model.metadata.values():
        value.decode()
    for tensor in model.tensors:
        assert len(tensor.source.read_rows(0, tensor.n_rows)) == tensor.n_rows


def test_a_sparse_file_that_claims_a_huge_header_takes_little_memory(tmp_path: Path) -> None:
    """Holes cost no disk: a file of a terabyte may claim an array of numbers that fills it."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(header(n_keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 12, 1 << 22) + bytes(64)))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(GgufError):
            open_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "llama.gguf"
    path.write_bytes(encode_header({"general.architecture": string("llama")}, []))
    with pytest.raises(GgufError, match="llama"):
        open_gguf(path)


def test_a_file_without_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    path.write_bytes(encode_header({"x": uint32(1)}, []))
    with pytest.raises(GgufError, match=r"general\.architecture"):
        open_gguf(path)


def test_a_truncated_file_is_noticed_when_rows_are_read(sample: Path, tmp_path: Path) -> None:
    path = tmp_path / "shrinks.gguf"
    path.write_bytes(sample.read_bytes())
    tensor = read_gguf(path).tensors[-1]
    with path.open("r+b") as file:
        file.truncate(200)
    with pytest.raises(InputError, match="ends at byte"):
        tensor.source.read_rows(0, tensor.n_rows)


def test_values_describe_their_type() -> None:
    assert uint32(1).describe_type() == "uint32"
    assert strings(["a", "b"]).describe_type() == "string[2]"
    assert isinstance(strings([]), Value)
