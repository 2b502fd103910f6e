"""Several file types in one run, and dry runs: what they write, read, name and foretell."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gemma4_quant as gq
from gemma4_quant.cli.app import app
from gemma4_quant.codecs.base import Effort
from gemma4_quant.conversion import ConversionOptions, forecast_conversion
from gemma4_quant.errors import OutputError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.formats.shards import SplitLimits
from gemma4_quant.ggml import FileType
from gemma4_quant.model import FileRows
from gemma4_quant.quantization import QuantizeOptions, forecast_quantization, quantize_each
from gemma4_quant.writing import writer
from gemma4_quant.writing.tiles import Destination, Tile

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-gemma4-e"
TYPES = (FileType.Q4_K_M, FileType.Q8_0, FileType.BF16)
F16 = ConversionOptions("f16")


@pytest.fixture
def source(example_bf16: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(example_bf16, tmp_path / "model-BF16.gguf"))


def test_each_file_has_the_bytes_of_a_run_of_its_own(source: Path, tmp_path: Path) -> None:
    results = quantize_each(source, tmp_path / "together-{ftype}.gguf", TYPES, QuantizeOptions(n_threads=2))
    for file_type, result in zip(TYPES, results, strict=True):
        alone = gq.quantize(source, tmp_path / "alone.gguf", file_type, n_threads=1)
        assert result.path == tmp_path / f"together-{file_type.name.lower()}.gguf"
        assert result.path.read_bytes() == alone.path.read_bytes()
        assert (result.n_bytes, result.types, result.fallbacks) == (alone.n_bytes, alone.types, alone.fallbacks)


def test_the_source_is_read_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_rows = FileRows.read_rows
    n_read: Counter[tuple[int, int]] = Counter()

    def counted(self: FileRows, start: int, stop: int) -> object:
        if stop - start > 1:  # single rows are looked at to recognise trained grids
            n_read[self.offset, start] += 1
        return read_rows(self, start, stop)

    monkeypatch.setattr(FileRows, "read_rows", counted)
    quantize_each(source, tmp_path / "{ftype}.gguf", (FileType.Q8_0, FileType.Q5_K_M), QuantizeOptions(n_threads=1))
    assert len(n_read) > 40
    assert set(n_read.values()) == {1}


def test_an_interrupted_run_of_several_types_can_be_finished_one_by_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gq.quantize(source, tmp_path / "whole.gguf", FileType.Q8_0).path.read_bytes()
    write = writer.write_tile
    names: list[str] = []

    def interrupting(tile: Tile, destinations: Sequence[Destination], effort: Effort) -> int:
        if len(names) == 60:
            raise KeyboardInterrupt
        names.append(tile.tensor.name)
        return write(tile, destinations, effort)

    with monkeypatch.context() as patched:
        patched.setattr(writer, "write_tile", interrupting)
        with pytest.raises(KeyboardInterrupt):
            quantize_each(source, tmp_path / "{ftype}.gguf", TYPES, QuantizeOptions(n_threads=1))
    before = set(names[:50])  # the rest was under way
    names.clear()
    monkeypatch.setattr(
        writer, "write_tile", lambda tile, *rest: names.append(tile.tensor.name) or write(tile, *rest)
    )
    assert gq.quantize(source, tmp_path / "{ftype}.gguf", FileType.Q8_0).path.read_bytes() == expected
    assert not before & set(names)
    assert not list(tmp_path.glob("q8_0.gguf.*"))
    assert (tmp_path / "q4_k_m.gguf.partial").exists()


def test_files_are_named_after_the_source_and_their_types(source: Path) -> None:
    results = quantize_each(source, None, (FileType.Q8_0, FileType.Q4_0, FileType.Q8_0))
    assert [result.path.name for result in results] == ["model-Q8_0.gguf", "model-Q4_0.gguf"]


def test_one_name_for_several_types_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"two outputs.*\{ftype\}"):
        quantize_each(source, tmp_path / "out.gguf", TYPES)
    assert [path.name for path in tmp_path.iterdir()] == ["model-BF16.gguf"]


def test_the_split_of_the_source_is_kept(tmp_path: Path) -> None:
    split = gq.convert(EXAMPLE, tmp_path / "model-BF16.gguf", "bf16", split=SplitLimits(None, 40))
    result = gq.quantize(split.files[2], None, FileType.Q4_0, keep_split=True)
    assert [path.name for path in result.files] == [f"model-Q4_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for before, after in zip(split.files, result.files, strict=True):
        assert [t.name for t in read_gguf(before).tensors] == [t.name for t in read_gguf(after).tensors]


def test_a_forecast_is_what_the_run_then_does(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_rows = FileRows.read_rows

    def single(self: FileRows, start: int, stop: int) -> object:
        assert stop - start == 1, "a dry run looks at single rows at most, to recognise trained grids"
        return read_rows(self, start, stop)

    with monkeypatch.context() as patched:
        patched.setattr(FileRows, "read_rows", single)
        foretold = forecast_quantization(source, None, TYPES[:2], QuantizeOptions(split=SplitLimits(2_000_000)))
    assert [path.name for path in tmp_path.iterdir()] == ["model-BF16.gguf"]
    results = quantize_each(source, None, TYPES[:2], QuantizeOptions(split=SplitLimits(2_000_000)))
    assert foretold.disk_bytes == sum(result.n_bytes for result in results)
    assert foretold.fits
    for output, result in zip(foretold.outputs, results, strict=True):
        assert output.file_type == result.file_type
        assert output.bits_per_weight == pytest.approx(result.bits_per_weight)
        assert [file.path for file in output.files] == list(result.files)
        assert [file.n_bytes for file in output.files] == [path.stat().st_size for path in result.files]
        tensors = [tensor for path in result.files for tensor in read_gguf(path).tensors]
        expected = [(tensor.name, tensor.type.name, tensor.n_bytes) for tensor in tensors]
        assert [(line.name, line.type, line.n_bytes) for line in output.tensors] == expected
        assert {line.name: line.wanted for line in output.tensors if line.wanted} == {
            name: change.split(" → ")[0] for name, change in result.fallbacks.items()
        }


def test_a_forecast_of_a_conversion_names_what_would_be_replaced(tmp_path: Path) -> None:
    foretold = forecast_conversion(EXAMPLE, tmp_path / "{ftype}.gguf", F16)
    assert not list(tmp_path.iterdir())
    result = gq.convert(EXAMPLE, tmp_path / "{ftype}.gguf", "f16")
    assert (foretold.outputs[0].files[0].path, foretold.outputs[0].n_bytes) == (result.path, result.n_bytes)
    assert not foretold.outputs[0].files[0].exists
    assert forecast_conversion(EXAMPLE, tmp_path / "{ftype}.gguf", F16).outputs[0].files[0].exists


def test_a_forecast_says_what_would_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        forecast_conversion(EXAMPLE, tmp_path / "nowhere" / "out.gguf")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert not forecast_conversion(EXAMPLE, tmp_path / "out.gguf").fits


def test_the_commands_foretell_as_text_and_as_json(source: Path, tmp_path: Path) -> None:
    arguments = ["quantize", str(source), str(tmp_path / "{ftype}.gguf"), "--type", "q4_k_m,q8_0", "--dry-run"]
    text = CliRunner().invoke(app, arguments).stdout
    assert "blk.0.proj.weight" in text
    assert re.search(r"blk\.0\.attn_q\.weight +256 × \d+ +BF16 → Q4_K", text)
    assert "disk: " in text
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [output["file_type"] for output in found["outputs"]] == ["q4_k_m", "q8_0"]
    assert found["disk_bytes"] == sum(output["n_bytes"] for output in found["outputs"])
    assert len(found["outputs"][0]["tensors"]) == 99
    shown = CliRunner().invoke(app, ["convert", str(EXAMPLE), "--outfile", str(tmp_path), "--dry-run"]).stdout
    assert "would write" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["model-BF16.gguf"]


def test_keeping_a_split_and_making_one_contradict(source: Path) -> None:
    arguments = ["quantize", str(source), "--type", "q8_0", "--keep-split", "--split-max-tensors", "3"]
    assert CliRunner().invoke(app, arguments).exit_code == 2
