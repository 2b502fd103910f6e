"""Opening a checkpoint directory: complete ones open, all others are refused with file and remedy."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_safetensors

from gemma4_quant.errors import CheckpointError, InputError, UnmappedTensorsError
from gemma4_quant.formats.checkpoint import INDEX_NAME, MAX_INDEX_BYTES, find_checkpoint_file, open_checkpoint
from gemma4_quant.formats.json_input import MAX_CONFIG_BYTES

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
WEIGHT_MAP = {"a": SHARDS[0], "b": SHARDS[1]}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint of two shards with one tensor each."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text('{"architectures": ["Gemma4ForCausalLM"]}')
    for name, shard in WEIGHT_MAP.items():
        write_safetensors(place / shard, {name: ("F32", (2,), bytes(8))})
    write_index(place, WEIGHT_MAP)
    return place


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_an_indexed_checkpoint_opens_with_all_tensors(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.config == {"architectures": ["Gemma4ForCausalLM"]}
    assert checkpoint.tensors["b"].file.path.name == SHARDS[1]


def test_shards_without_an_index_open(directory: Path) -> None:
    (directory / INDEX_NAME).unlink()
    assert list(open_checkpoint(directory).tensors) == ["a", "b"]


def test_a_single_file_opens(directory: Path) -> None:
    for name in (INDEX_NAME, *SHARDS):
        (directory / name).unlink()
    write_safetensors(directory / "model.safetensors", {"c": ("BF16", (2,), bytes(4))})
    assert list(open_checkpoint(directory).tensors) == ["c"]


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; give the directory"):
        open_checkpoint(tmp_path / "nothing")


def test_a_file_in_place_of_a_directory(directory: Path) -> None:
    with pytest.raises(InputError, match=r"is a file; give the directory that holds the checkpoint's config\.json"):
        open_checkpoint(directory / "config.json")


def test_all_missing_shards_are_listed(directory: Path) -> None:
    for shard in SHARDS:
        (directory / shard).unlink()
    with pytest.raises(CheckpointError, match=f"lacks 2 of 2 shards: {SHARDS[0]}, {SHARDS[1]}; download them"):
        open_checkpoint(directory)


def test_a_missing_shard_is_noticed_by_its_number_when_there_is_no_index(directory: Path) -> None:
    (directory / INDEX_NAME).unlink()
    (directory / SHARDS[0]).unlink()
    with pytest.raises(CheckpointError, match=f"lacks 1 of 2 shards: {SHARDS[0]}"):
        open_checkpoint(directory)


def test_a_truncated_shard_is_named_with_the_remedy(directory: Path) -> None:
    shard = directory / SHARDS[1]
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=rf"{SHARDS[1]} is truncated: .*fetch it again"):
        open_checkpoint(directory)


def test_pickled_weights_are_refused_with_the_way_out(directory: Path) -> None:
    for name in (INDEX_NAME, *SHARDS):
        (directory / name).unlink()
    (directory / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="safe_serialization"):
        open_checkpoint(directory)


def test_a_tensor_in_two_shards_is_refused(directory: Path) -> None:
    (directory / INDEX_NAME).unlink()
    shutil.copyfile(directory / SHARDS[0], directory / SHARDS[1])
    with pytest.raises(CheckpointError, match="has too: a; remove"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        (None, "no weight_map"),
        ([], "no weight_map"),
        ({}, "no weight_map"),
        ("model.safetensors", "no weight_map"),
        ({"a": 1}, "the number 1"),
        ({"a": None}, "null"),
        ({"a": ["x.safetensors"]}, "a list"),
        ({"a": ""}, "only names"),
        ({"a": "."}, "only names"),
        ({"a": ".."}, "only names"),
        ({"a": "../other/model.safetensors"}, "only names"),
        ({"a": "sub/model.safetensors"}, "only names"),
        ({"a": "/etc/passwd"}, "only names"),
        ({"a": "/model.safetensors"}, "only names"),
        ({"a": "..\\model.safetensors"}, "only names"),
        ({"a": "C:model.safetensors"}, "only names"),
        ({"a": "model.safetensors\0"}, "only names"),
        ({"a": "mod\0el.safetensors"}, "only names"),
        ({"a": "\nmodel.safetensors"}, "only names"),
        ({"a": "config.json"}, "only names"),
        ({"a": "x" * 5000 + ".safetensors"}, "only names"),
        ({"a": "absent.safetensors"}, "lacks 1 of 1 shards"),
    ],
)
def test_an_index_that_names_anything_but_shards_beside_it_is_refused(
    weight_map: Any, reason: str, directory: Path
) -> None:
    write_index(directory, weight_map)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 700


def test_every_tensor_of_the_index_must_be_in_its_shard(directory: Path) -> None:
    write_index(directory, {**WEIGHT_MAP, "c": SHARDS[0], "d": SHARDS[1]})
    with pytest.raises(UnmappedTensorsError, match=r"2 tensors of .* are not in the shard it names: c, d"):
        open_checkpoint(directory)


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(directory: Path) -> None:
    write_index(directory, {"a": SHARDS[1], "b": SHARDS[0]})
    with pytest.raises(UnmappedTensorsError, match="2 tensors"):
        open_checkpoint(directory)


def test_tensors_that_the_index_does_not_know_are_refused(directory: Path) -> None:
    write_safetensors(directory / SHARDS[0], {"a": ("F32", (2,), bytes(8)), "z": ("F32", (1,), bytes(4))})
    with pytest.raises(UnmappedTensorsError, match=r"1 tensors of the shards are not in .*: z"):
        open_checkpoint(directory)


BAD_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not valid JSON"),
    "binary": (bytes(range(256)), "not valid JSON"),
    "list": (b"[1, 2]", "a list"),
    "text": (b'"config"', "the text 'config'"),
    "null": (b"null", "null"),
    "deep": (b'{"a":' * 100_000, "nested too deeply"),
    "wide": (b"[" + b"," * 3_100_000, "entries"),
    "infinite": (b'{"a": Infinity}', "Infinity is not a JSON number"),
    "huge": (b'{"a": "' + b"x" * MAX_CONFIG_BYTES + b'"}', "larger than 4 MiB"),
    "digits": (b'{"a": ' + b"9" * 100_000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("name", BAD_JSON)
@pytest.mark.parametrize("file", ["config.json", INDEX_NAME])
def test_json_that_is_damaged_or_a_bomb_is_refused(name: str, file: str, directory: Path) -> None:
    content, reason = BAD_JSON[name]
    if file == INDEX_NAME and name == "huge":
        content, reason = b" " * (MAX_INDEX_BYTES + 1), "larger than 16 MiB"
    (directory / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_checkpoint(directory)
    assert file in str(caught.value)


def test_links_within_the_directory_are_followed(directory: Path) -> None:
    (directory / SHARDS[0]).rename(directory / "weights")
    (directory / SHARDS[0]).symlink_to("weights")
    assert list(open_checkpoint(directory).tensors) == ["a", "b"]


def test_a_snapshot_of_the_hub_cache_opens(directory: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--google--gemma-4"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(directory.iterdir())):
        blob = repository / "blobs" / f"{number:064x}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    assert list(open_checkpoint(snapshot).tensors) == ["a", "b"]


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, SHARDS[0]])
def test_links_out_of_the_directory_are_refused(name: str, directory: Path, tmp_path: Path) -> None:
    (directory / name).rename(tmp_path / "elsewhere")
    (directory / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{name} is a link that leads out of the checkpoint"):
        open_checkpoint(directory)


def test_a_link_from_a_snapshot_to_another_repository_is_refused(directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "models--other" / "blobs"
    other.mkdir(parents=True)
    snapshot = tmp_path / "models--google--gemma-4" / "snapshots" / "0123abcd"
    shutil.copytree(directory, snapshot)
    (snapshot / SHARDS[0]).rename(other / "x")
    (snapshot / SHARDS[0]).symlink_to("../../../models--other/blobs/x")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        open_checkpoint(snapshot)


def test_a_link_to_nothing_is_refused(directory: Path) -> None:
    (directory / SHARDS[0]).unlink()
    (directory / SHARDS[0]).symlink_to("gone")
    with pytest.raises(CheckpointError, match="is a link to a file that is not there"):
        open_checkpoint(directory)


def test_a_link_in_a_circle_is_refused(directory: Path) -> None:
    (directory / SHARDS[0]).unlink()
    (directory / SHARDS[0]).symlink_to(SHARDS[0])
    with pytest.raises(CheckpointError):
        open_checkpoint(directory)


SPECIAL_FILES: dict[str, Callable[[Path], None]] = {"a directory": Path.mkdir, "a pipe": os.mkfifo}


@pytest.mark.parametrize("kind", SPECIAL_FILES)
@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, SHARDS[0]])
def test_what_is_not_a_regular_file_is_refused(kind: str, name: str, directory: Path) -> None:
    (directory / name).unlink()
    SPECIAL_FILES[kind](directory / name)
    with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
        open_checkpoint(directory)


def test_a_file_that_is_not_there_is_none(directory: Path) -> None:
    assert find_checkpoint_file(directory, "README.md") is None
