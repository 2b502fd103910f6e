"""Carrying out plans: bytes, atomicity, resuming, thread independence."""

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import NonFiniteError, OutputError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import GgmlType
from gemma4_quant.metadata import string, uint32
from gemma4_quant.model import ArrayRows, DataFile, FileRows, Tensor
from gemma4_quant.writing import writer
from gemma4_quant.writing.journal import Journal
from gemma4_quant.writing.partial_file import PartialFile
from gemma4_quant.writing.plan import Assignment, Plan, make_plan
from gemma4_quant.writing.tiles import Destination, Tile, tiles_of
from gemma4_quant.writing.writer import Job, write_gguf, write_ggufs

METADATA = {"general.architecture": string("gemma4")}


def source_file(path: Path, rows: np.ndarray) -> Tensor:
    """Store `rows` as F32 in a file and return it as a tensor named after the file."""
    path.write_bytes(rows.astype("<f4").tobytes())
    return Tensor(path.stem, rows.shape, GgmlType.F32, FileRows(DataFile(path), 0, rows.shape[-1] * 4))


@pytest.fixture
def tensors(tmp_path: Path) -> list[Tensor]:
    """Three F32 tensors: a matrix of many tiles, two experts, and a vector."""
    rng = np.random.default_rng(3)
    shapes = {"matrix": (3000, 1024), "experts": (2, 130, 256), "vector": (48,)}
    return [source_file(tmp_path / f"{name}.bin", rng.normal(size=shape)) for name, shape in shapes.items()]


def plan_for(tensors: list[Tensor], kind: GgmlType) -> Plan:
    return make_plan(METADATA, [Assignment(t, kind if len(t.shape) > 1 else GgmlType.F32) for t in tensors])


def float_rows(tensor: Tensor) -> np.ndarray:
    return tensor.source.read_rows(0, tensor.n_rows).view("<f4")


@pytest.mark.parametrize("kind", [GgmlType.F32, GgmlType.F16, GgmlType.BF16, GgmlType.Q8_0])
def test_plain_encodings_equal_the_gguf_package_byte_for_byte(
    tensors: list[Tensor], kind: GgmlType, tmp_path: Path
) -> None:
    output = tmp_path / "out.gguf"
    write_gguf(plan_for(tensors, kind), output, effort=Effort.PLAIN)
    written = gguf.GGUFReader(output)
    for tensor, found in zip(tensors, written.tensors, strict=True):
        wanted = kind if len(tensor.shape) > 1 else GgmlType.F32
        expected = gguf.quantize(float_rows(tensor), gguf.GGMLQuantizationType(wanted))
        assert found.tensor_type == wanted
        assert found.data.tobytes() == expected.tobytes()


def test_bytes_do_not_depend_on_the_number_of_threads(tensors: list[Tensor], tmp_path: Path) -> None:
    outputs = []
    for n_threads in (1, 2, 5):
        output = tmp_path / f"out-{n_threads}.gguf"
        write_gguf(plan_for(tensors, GgmlType.Q4_K), output, n_threads=n_threads)
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]


def test_tiles_cover_each_row_once_and_stay_within_an_expert(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        tiles = list(tiles_of(tensor))
        assert [row for tile in tiles for row in range(tile.start, tile.stop)] == list(range(tensor.n_rows))
        rows_per_matrix = tensor.n_rows // tensor.n_matrices
        assert all(
            (tile.stop - 1) // rows_per_matrix == tile.start // rows_per_matrix == tile.matrix for tile in tiles
        )


def test_each_expert_is_encoded_with_its_own_importance(tmp_path: Path) -> None:
    rows = np.random.default_rng(5).normal(size=(2, 64, 256))
    rows[1] = rows[0]
    importance = np.ones((2, 256), np.float32)
    importance[1, ::7] = 100
    plan = make_plan(METADATA, [Assignment(source_file(tmp_path / "e.bin", rows), GgmlType.Q4_K, importance)])
    write_gguf(plan, tmp_path / "out.gguf")
    first, second = gguf.GGUFReader(tmp_path / "out.gguf").tensors[0].data
    assert first.tobytes() != second.tobytes()


def test_nothing_is_left_when_a_weight_is_not_finite(tmp_path: Path) -> None:
    for kind in (GgmlType.F32, GgmlType.BF16, GgmlType.Q8_0):
        rows = np.zeros((200, 64), np.float32)
        rows[150, 3] = np.nan
        tensor = source_file(tmp_path / "bad.bin", rows)
        with pytest.raises(NonFiniteError, match="bad"):
            write_gguf(plan_for([tensor], kind), tmp_path / "out.gguf")
        assert {path.name for path in tmp_path.iterdir()} == {"bad.bin"}


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    tensors: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(tensors, GgmlType.Q4_K)
    write_gguf(plan, tmp_path / "whole.gguf")
    output = tmp_path / "out.gguf"
    write = writer.write_tile
    encoded: list[str] = []

    def interrupting(tile: Tile, destinations: Sequence[Destination], effort: Effort) -> int:
        if tile.tensor.name == "experts" and not encoded.count("experts"):
            encoded.append("experts")
            raise KeyboardInterrupt
        encoded.append(tile.tensor.name)
        return write(tile, destinations, effort)

    monkeypatch.setattr(writer, "write_tile", interrupting)
    with pytest.raises(KeyboardInterrupt):
        write_gguf(plan, output, n_threads=1)
    assert not output.exists()
    assert output.with_name("out.gguf.partial").exists()

    encoded.clear()
    encoded.append("experts")
    write_gguf(plan, output, n_threads=1)
    assert "matrix" not in encoded
    assert output.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


def test_a_partial_file_of_another_plan_is_not_reused(tensors: list[Tensor], tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.with_name("out.gguf.partial").write_bytes(b"rubbish" * 1000)
    output.with_name("out.gguf.partial.journal").write_text("0" * 64 + "\ndone matrix\ndone experts\ndone vector\n")
    write_gguf(plan_for(tensors, GgmlType.F32), output)
    assert (
        read_gguf(output).tensors[0].source.read_rows(0, 5).view("<f4").tobytes()
        == float_rows(tensors[0])[:5].tobytes()
    )


def test_a_locked_output_leaves_what_another_has_done(
    tensors: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two outputs the second is being written by another run: the first one's earlier work must survive that."""
    plan, other = plan_for(tensors, GgmlType.Q8_0), plan_for(tensors, GgmlType.F16)
    write = writer.write_tile

    def interrupting(tile: Tile, destinations: Sequence[Destination], effort: Effort) -> int:
        if tile.tensor.name == "vector":
            raise KeyboardInterrupt
        return write(tile, destinations, effort)

    with monkeypatch.context() as patched:
        patched.setattr(writer, "write_tile", interrupting)
        with pytest.raises(KeyboardInterrupt):
            write_gguf(plan, tmp_path / "first.gguf")
    left = {path.name: path.read_bytes() for path in tmp_path.glob("first*")}
    assert len(left) == 2
    journal = Journal(tmp_path / "second.gguf", "another run")
    with pytest.raises(OutputError, match="another run"):
        write_ggufs([Job(plan, tmp_path / "first.gguf"), Job(other, tmp_path / "second.gguf")])
    assert {path.name: path.read_bytes() for path in tmp_path.glob("first*")} == left
    journal.remove()
    write_ggufs([Job(plan, tmp_path / "first.gguf"), Job(other, tmp_path / "second.gguf")])
    assert not list(tmp_path.glob("*.partial*"))


def test_a_journal_line_cut_off_by_a_crash_does_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.gguf", "digest")
    journal.begin()
    journal.add(["one", "odd\nname"])
    journal.close()
    path = tmp_path / "out.gguf.partial.journal"
    path.write_bytes(path.read_bytes() + b"done tw")
    again = Journal(tmp_path / "out.gguf", "digest")
    assert [again.has(name) for name in ("one", "odd\nname", "tw", "two")] == [True, True, False, False]
    again.add(["two"])
    again.close()
    assert Journal(tmp_path / "out.gguf", "digest").has("two")
    assert not Journal(tmp_path / "other.gguf", "other").resumes


def test_an_alignment_of_the_source_holds_in_the_output(tensors: list[Tensor], tmp_path: Path) -> None:
    plan = make_plan(
        {**METADATA, "general.alignment": uint32(4096)}, [Assignment(tensor, GgmlType.F32) for tensor in tensors]
    )
    write_gguf(plan, tmp_path / "out.gguf")
    for tensor, found in zip(tensors, gguf.GGUFReader(tmp_path / "out.gguf").tensors, strict=True):
        assert found.data_offset % 4096 == 0
        assert found.data.tobytes() == float_rows(tensor).tobytes()


def test_two_runs_do_not_write_the_same_output(tensors: list[Tensor], tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.gguf", "another run")
    with pytest.raises(OutputError, match="another run"):
        write_gguf(plan_for(tensors, GgmlType.F32), tmp_path / "out.gguf")
    journal.remove()
    write_gguf(plan_for(tensors, GgmlType.F32), tmp_path / "out.gguf")


def test_too_little_space_is_noticed_before_anything_is_written(
    tensors: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    before = set(tmp_path.iterdir())
    with pytest.raises(OutputError, match="1,000 are free"):
        write_gguf(plan_for(tensors, GgmlType.F32), tmp_path / "out.gguf")
    assert set(tmp_path.iterdir()) == before


def test_a_disk_that_fills_up_keeps_the_partial_file_and_says_so(
    tensors: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_to_full_disk(_self: object, _offset: int, _view: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PartialFile, "_write_some", write_to_full_disk)
    with pytest.raises(OutputError, match="no space left"):
        write_gguf(plan_for(tensors, GgmlType.F32), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    tensor = source_file(tmp_path / "t.bin", np.ones((4, 32)))
    with pytest.raises(OutputError, match="also the source"):
        write_gguf(plan_for([tensor], GgmlType.F16), tmp_path / "t.bin")
    with pytest.raises(OutputError, match="does not exist"):
        write_gguf(plan_for([tensor], GgmlType.F16), tmp_path / "nowhere" / "out.gguf")
    with pytest.raises(OutputError, match="directory"):
        write_gguf(plan_for([tensor], GgmlType.F16), tmp_path)


def test_computed_tensors_are_written_like_read_ones(tmp_path: Path) -> None:
    values = np.array([1.0, 1e30], np.float32)
    tensor = Tensor("rope_freqs.weight", (2,), GgmlType.F32, ArrayRows(lambda: values.view(np.uint8)[None]))
    write_gguf(plan_for([tensor], GgmlType.F16), tmp_path / "out.gguf")
    assert gguf.GGUFReader(tmp_path / "out.gguf").tensors[0].data.tolist() == values.tolist()
