"""Split models: the files that llama.cpp's converter writes, reading them as one, and shards of different models."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import EXAMPLE, GOLDEN

import gemma4_quant as gq
from gemma4_quant.benchmark import BenchOptions
from gemma4_quant.errors import GgufError, InputError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.formats.shards import KEYS, SplitLimits, parse_size, shard_paths, sibling_paths
from gemma4_quant.measuring.speed_plan import SpeedPlan
from gemma4_quant.runner.session import LoadedModel
from gemma4_quant.source import open_gguf

RECORDED = json.loads((GOLDEN / "split-example.json").read_text())["splits"]
LIMITS = {"--split-max-size 4M": SplitLimits(max_bytes=4_000_000), "--split-max-tensors 40": SplitLimits(None, 40)}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The example as three shards of at most 40 tensors."""
    output = tmp_path_factory.mktemp("split") / "tiny.gguf"
    return gq.convert(EXAMPLE, output, "bf16", split=LIMITS["--split-max-tensors 40"]).files


@pytest.fixture
def shards(split: tuple[Path, ...], tmp_path: Path) -> list[Path]:
    """A copy of the shards that a test may damage."""
    return [Path(shutil.copyfile(path, tmp_path / path.name)) for path in split]


@pytest.mark.parametrize("limit", LIMITS)
def test_shards_are_the_files_of_llama_cpps_converter(limit: str, tmp_path: Path) -> None:
    result = gq.convert(EXAMPLE, tmp_path / "split.gguf", "bf16", split=LIMITS[limit])
    found = [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in result.files
    ]
    assert found == RECORDED[limit]
    assert result.path == result.files[0]
    assert {path.name for path in tmp_path.iterdir()} == {entry["name"] for entry in RECORDED[limit]}


def test_a_model_within_the_limits_is_one_file_without_split_keys(tmp_path: Path, example_bf16: Path) -> None:
    result = gq.convert(EXAMPLE, tmp_path / "whole.gguf", "bf16", split=SplitLimits(10**9, 1000))
    assert result.files == (tmp_path / "whole.gguf",)
    assert result.path.read_bytes() == example_bf16.read_bytes()


@given(sizes=st.lists(st.integers(1, 50), max_size=40), limit=st.integers(1, 60), n_tensors=st.integers(1, 7))
def test_limits_are_kept_as_the_gguf_package_keeps_them(sizes: list[int], limit: int, n_tensors: int) -> None:
    writer = gguf.GGUFWriter(None, "gemma4", split_max_tensors=n_tensors, split_max_size=limit)
    for i, size in enumerate(sizes):
        writer.add_tensor_info(str(i), [size], "int8", size, gguf.GGMLQuantizationType.I8)
    expected = [len(shard) for shard in writer.tensors]
    assert SplitLimits(limit, n_tensors).counts([str(i) for i in range(len(sizes))], sizes) == expected


def test_any_shard_opens_the_whole_model(split: tuple[Path, ...], example_bf16: Path) -> None:
    whole = open_gguf(example_bf16)
    for path in split:
        model = open_gguf(path)
        assert model.path == split[0]
        assert model.metadata == whole.metadata
        assert model.shard_sizes == (40, 40, 19)
        assert [tensor.name for tensor in model.tensors] == [tensor.name for tensor in whole.tensors]
        for ours, expected in zip(model.tensors, whole.tensors, strict=True):
            rows = ours.source.read_rows(0, ours.n_rows)
            assert rows.tobytes() == expected.source.read_rows(0, expected.n_rows).tobytes()


def test_llama_cpp_runs_what_any_shard_belongs_to(split: tuple[Path, ...]) -> None:
    result = gq.bench([split[1]], texts=(), options=BenchOptions(speed=SpeedPlan((16,), (0,)))).models[0]
    assert result.file.n_bytes == sum(path.stat().st_size for path in split)
    with LoadedModel(split[2]) as model:
        assert model.n_vocab == 2048


def test_quantizing_shards_gives_the_tensors_of_quantizing_the_whole(
    split: tuple[Path, ...], example_bf16: Path, tmp_path: Path
) -> None:
    whole = gq.quantize(example_bf16, tmp_path / "whole.gguf", gq.FileType.Q4_0).path
    joined = gq.quantize(split[1], tmp_path / "joined.gguf", gq.FileType.Q4_0).path
    for ours, expected in zip(gguf.GGUFReader(joined).tensors, gguf.GGUFReader(whole).tensors, strict=True):
        assert (ours.name, ours.tensor_type) == (expected.name, expected.tensor_type)
        assert ours.data.tobytes() == expected.data.tobytes()


def damage_name(shards: list[Path]) -> None:
    for number, path in enumerate(shards):
        shards[number] = path.rename(path.with_name(f"part{number}.gguf"))


def damage_missing(shards: list[Path]) -> None:
    shards[2].unlink()


def damage_twice(shards: list[Path]) -> None:
    shutil.copyfile(shards[1], shards[2])


def replace_number(path: Path, key: str, value: bytes) -> None:
    content = path.read_bytes()
    at = content.index(key.encode()) + len(key) + 4  # the value follows its type
    path.write_bytes(content[:at] + value + content[at + len(value) :])


def damage_count(shards: list[Path]) -> None:
    replace_number(shards[1], "split.count", struct.pack("<H", 4))


def damage_total(shards: list[Path]) -> None:
    for path in shards:
        replace_number(path, "split.tensors.count", struct.pack("<i", 98))


def damage_absurd(shards: list[Path]) -> None:
    replace_number(shards[0], "split.count", struct.pack("<H", 65535))


def damage_number(shards: list[Path]) -> None:
    replace_number(shards[0], "split.no", struct.pack("<H", 7))


def damage_key(shards: list[Path]) -> None:
    content = shards[0].read_bytes()
    shards[0].write_bytes(content.replace(b"split.no", b"split.xx"))


def damage_duplicate(shards: list[Path]) -> None:
    first, third = open_gguf(shards[0]).tensors[0].name.encode(), shards[2].read_bytes()
    victim = next(t.name for t in read_gguf(shards[2]).tensors if len(t.name) == len(first)).encode()
    shards[2].write_bytes(third.replace(victim, first))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_name, r"must be named NAME-00001-of-00003\.gguf"),
        (damage_missing, "lacks 1 of 3 shards: tiny-00003-of-00003"),
        (damage_twice, r"split\.no is 1, not 2"),
        (damage_count, r"split\.count is 4, not 3"),
        (damage_total, "hold 99 tensors, 98 are expected"),
        (damage_absurd, "shard 1 of 65535, with 99 tensors"),
        (damage_number, "shard 8 of 3"),
        (damage_key, r"no split\.no"),
        (damage_duplicate, "another shard has too"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(
    damage: Callable[[list[Path]], None], message: str, shards: list[Path]
) -> None:
    damage(shards)
    with pytest.raises(GgufError, match=message):
        open_gguf(shards[0])


def test_a_shard_of_another_model_is_refused(shards: list[Path], tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    for key, value in zip(KEYS, (1, 3), strict=False):
        writer.add_uint16(key, value)
    writer.add_int32(KEYS[2], 99)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (tmp_path / "other.gguf").rename(shards[1])
    with pytest.raises(GgufError, match=r"another model.*general\.architecture"):
        open_gguf(shards[0])


@pytest.mark.parametrize(("text", "n_bytes"), [("2G", 2 * 10**9), ("500m", 5 * 10**8), ("100K", 10**5), (" 17 ", 17)])
def test_sizes_have_decimal_units(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "G", "0", "0K", "-1", "1.5G", "1T", "1GB", "٣G", "9" * 30])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a size"):
        parse_size(text)


def test_names_of_shards_follow_llama_cpp(tmp_path: Path) -> None:
    paths = shard_paths(tmp_path / "m.v1.gguf", 2)
    assert [path.name for path in paths] == ["m.v1-00001-of-00002.gguf", "m.v1-00002-of-00002.gguf"]
    assert sibling_paths(paths[1], 1, 2) == paths
    assert sibling_paths(paths[1], 0, 2) is None
    assert sibling_paths(paths[1], 1, 3) is None
