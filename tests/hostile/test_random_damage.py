"""Random damage to sound files: bytes flipped, copied over others, cut out or cut off; then read whole or refused."""

import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moments_files import MadeUpInputs, correlated, write_moments
from tiny_models import write_tiny, write_tiny_gguf, write_tiny_importance

from gemma4_quant.calibration.importance import read_importance
from gemma4_quant.calibration.moments import read_moments
from gemma4_quant.conversion import convert
from gemma4_quant.errors import Gemma4QuantError
from gemma4_quant.ggml import FileType
from gemma4_quant.inspection import inspect
from gemma4_quant.quantization import quantize
from gemma4_quant.source import open_model

SHARD = "model-00001-of-00001.safetensors"
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("sound") / "model", "moe")


def damage(data: st.DataObject, content: bytes, end: int) -> bytes:
    """Change some of the bytes before `end`, and perhaps cut the rest off."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at, length = data.draw(st.integers(0, end - 1)), data.draw(st.sampled_from([1, 2, 4, 8]))
        kind = data.draw(st.sampled_from(["flip", "write", "copy", "delete", "repeat"]))
        piece = bytes(changed[at : at + length])
        if kind == "flip" and piece:
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "write":
            edges = [bytes(length), b"\xff" * length, b"\x80".rjust(length, b"\0"), b"\x7f".rjust(length, b"\xff")]
            changed[at : at + length] = data.draw(
                st.sampled_from(edges) | st.binary(min_size=length, max_size=length)
            )
        elif kind == "copy":
            other = data.draw(st.integers(0, end - 1))
            changed[other : other + len(piece)] = piece
        elif kind == "delete":
            del changed[at : at + length]
        else:
            changed[at:at] = piece * data.draw(st.integers(1, 3))
    return bytes(changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))])


def check(read: Callable[[Path], object], directory: Path) -> None:
    """Read; what fails must be an error of ours, and leave nothing in `directory`."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    with suppress(Gemma4QuantError):
        read(directory)
        return
    assert list(directory.iterdir()) == []


@many
@given(data=st.data())
def test_damaged_safetensors(data: st.DataObject, checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / SHARD
    content = path.read_bytes()
    try:
        path.write_bytes(damage(data, content, 8 + struct.unpack_from("<Q", content)[0]))
        check(lambda out: convert(checkpoint, out / "out.gguf", "f16", n_threads=1), tmp_path / "out")
    finally:
        path.write_bytes(content)


@many
@given(data=st.data())
def test_safetensors_with_exchanged_entries(data: st.DataObject, checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / SHARD
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    names = sorted(name for name in header if name != "__metadata__")
    for _ in range(data.draw(st.integers(1, 3))):
        one, other = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        header[one][field], header[other][field] = header[other][field], header[one][field]
    encoded = json.dumps(header).encode()
    try:
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])
        check(lambda out: convert(checkpoint, out / "out.gguf", "f16", n_threads=1), tmp_path / "out")
    finally:
        path.write_bytes(content)


@many
@given(data=st.data())
def test_damaged_gguf(data: st.DataObject, model: Path, tmp_path: Path) -> None:
    content = model.read_bytes()
    header_end = len(content) - sum(tensor.n_bytes for tensor in open_model(model).tensors)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damage(data, content, header_end))
    with suppress(Gemma4QuantError):
        inspect(path)
    check(lambda out: quantize(path, out / "out.gguf", FileType.Q8_0, n_threads=1), tmp_path / "out")


@many
@given(data=st.data())
def test_damaged_importance(data: st.DataObject, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "importance.gguf"
    content = write_tiny_importance(path, model).read_bytes()
    path.write_bytes(damage(data, content, len(content)))
    with suppress(Gemma4QuantError):
        read_importance(path)
    check(
        lambda out: quantize(model, out / "out.gguf", FileType.Q8_0, importance=path, n_threads=1), tmp_path / "out"
    )


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Second moments of three matrices in blocks, and of one in full."""
    path = tmp_path_factory.mktemp("sound") / "moments.gguf"
    summed, held_out = [correlated(40, 320, i) for i in range(3)], [correlated(3, 320, 9)] * 3
    one = MadeUpInputs([correlated(40, 64, 0)], [correlated(3, 64, 1)])
    write_moments(path, {"experts": MadeUpInputs(summed, held_out, 256), "one": one}, n_slots=4)
    return path


def read_all_moments(path: Path) -> None:
    for each in read_moments(path).values():
        for matrix in range(each.n_matrices):
            for block in range(each.n_blocks):
                each.block(matrix, block)
            each.mean_square(matrix)
            each.held_out(matrix)


@many
@given(data=st.data())
def test_damaged_moments(data: st.DataObject, moments: Path, tmp_path: Path) -> None:
    content = moments.read_bytes()
    end = data.draw(st.sampled_from([1400, len(content)]))  # the header is what most can go wrong in
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damage(data, content, end))
    with suppress(Gemma4QuantError):
        read_all_moments(path)


def test_sound_moments_are_read(moments: Path) -> None:
    """Else the test above would hold for a reader that refuses everything."""
    read_all_moments(moments)
