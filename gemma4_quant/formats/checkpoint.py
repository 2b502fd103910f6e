"""A Hugging Face checkpoint directory: config.json, safetensors shards, and the small files beside them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gemma4_quant.errors import CheckpointError, InputError, UnmappedTensorsError, listed
from gemma4_quant.formats.json_input import kind_of, read_json_object
from gemma4_quant.formats.safetensors_header import StoredTensor, read_header
from gemma4_quant.hub.cache import blob_folders
from gemma4_quant.model import DataFile, RowSource

INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 16 << 20

_NUMBERED_SHARD = re.compile(r"(?P<stem>.*-)(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")


class CheckpointTensor(Protocol):
    """A tensor of a checkpoint: one that stands in a file, or one made from several."""

    @property
    def name(self) -> str:
        """Name in the checkpoint."""
        ...

    @property
    def dtype(self) -> str:
        """Type of `source`, as safetensors names it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, row-major."""
        ...

    @property
    def source(self) -> RowSource:
        """The rows."""
        ...


@dataclass(frozen=True)
class DerivedTensor:
    """A tensor that is made, row by row, from others; see CheckpointTensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: RowSource


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: every header is read and checked, no weight is read yet.

    config: config.json as it stands. tensors: by name, in the order of llama.cpp's converter (shards by file name,
    tensors by name within each).
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, CheckpointTensor]

    def find_file(self, name: str) -> Path | None:
        """Return the path of a file of the checkpoint, None when there is none; see `find_checkpoint_file`."""
        return find_checkpoint_file(self.directory, name)

    def read_json(self, name: str, max_bytes: int | None = None) -> dict[str, Any] | None:
        """Return the object in a JSON file of the checkpoint, None when there is no such file."""
        path = self.find_file(name)
        if path is None:
            return None
        return read_json_object(path) if max_bytes is None else read_json_object(path, max_bytes)


def open_checkpoint(directory: Path) -> Checkpoint:
    """Open the checkpoint in `directory`.

    Raises InputError when there is no such directory, CheckpointError when a file is missing, damaged, incomplete,
    or lies outside the directory.
    """
    if not directory.exists():
        raise InputError(f"{directory} does not exist; give the directory of a checkpoint")
    if not directory.is_dir():
        raise InputError(f"{directory} is a file; give the directory that holds the checkpoint's config.json")
    config_path = find_checkpoint_file(directory, "config.json")
    if config_path is None:
        raise CheckpointError(f"{directory} has no config.json; give a checkpoint as downloaded from Hugging Face")
    return Checkpoint(directory, read_json_object(config_path), _open_shards(directory))


def find_checkpoint_file(directory: Path, name: str) -> Path | None:
    """Return the path of the regular file `name` in `directory`, None when there is none.

    A symbolic link must stay in the directory; in a Hugging Face cache, where a snapshot consists of links, it may
    lead to its blobs. Raises CheckpointError for any other link.
    """
    path = directory / name
    try:
        real = path.resolve(strict=True)
        root = directory.resolve(strict=True)
    except FileNotFoundError:
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link to a file that is not there; download it again") from None
        return None
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, names that no file can have
        raise CheckpointError(f"cannot open {path}: {error}") from error
    if not any(real.is_relative_to(place) for place in (root, *blob_folders(root))):
        raise CheckpointError(f"{path} is a link that leads out of the checkpoint; put the file itself there")
    if not real.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    return path


def indexed_shards(index: Path) -> list[str]:
    """Return the file names of the shards that an index names; raises CheckpointError for a damaged one."""
    return sorted(set(_read_weight_map(index).values()))


def _open_shards(directory: Path) -> dict[str, StoredTensor]:
    index = find_checkpoint_file(directory, INDEX_NAME)
    weight_map = None if index is None else _read_weight_map(index)
    names = _unindexed_shards(directory) if weight_map is None else sorted(set(weight_map.values()))
    tensors: dict[str, StoredTensor] = {}
    for path in _existing(directory, names):
        shard = read_header(DataFile(path))
        twice = [name for name in shard if name in tensors]
        if twice:
            raise CheckpointError(
                f"{path} holds tensors that {tensors[twice[0]].file.path} has too: {listed(twice)}; "
                "remove the shards that do not belong to this checkpoint"
            )
        tensors.update(shard)
    if weight_map is not None:
        _check_weight_map(weight_map, tensors, directory / INDEX_NAME)
    return tensors


def _read_weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json_object(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map; download the file again")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{path}: the shard of {tensor[:200]!r} is {kind_of(shard)}, not a file name")
        if not shard.endswith(".safetensors") or not _is_plain_name(shard):
            raise CheckpointError(
                f"{path}: the shard of {tensor[:200]!r} is {shard[:200]!r}; only names of .safetensors files "
                "in the same directory are allowed"
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return not any(character in name for character in "/\\:\0\n") and not name.startswith(".") and len(name) <= 255


def _unindexed_shards(directory: Path) -> list[str]:
    found = sorted(path.name for path in directory.glob("model*.safetensors"))
    if not found:
        pickled = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
        hint = f" ({listed(pickled)}: save it again with safe_serialization=True)" if pickled else ""
        raise CheckpointError(f"{directory} has no {INDEX_NAME} and no model*.safetensors{hint}")
    expected = set(found)
    for match in filter(None, map(_NUMBERED_SHARD.fullmatch, found)):
        total = match["total"]
        expected |= {f"{match['stem']}{number:05}-of-{total}.safetensors" for number in range(1, int(total) + 1)}
    return sorted(expected)


def _existing(directory: Path, names: Iterable[str]) -> list[Path]:
    paths = {name: find_checkpoint_file(directory, name) for name in names}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise CheckpointError(
            f"{directory} lacks {len(missing)} of {len(paths)} shards: {listed(missing)}; download them"
        )
    return [path for path in paths.values() if path is not None]


def _check_weight_map(weight_map: Mapping[str, str], tensors: Mapping[str, StoredTensor], index: Path) -> None:
    missing = sorted(
        name for name, shard in weight_map.items() if name not in tensors or tensors[name].file.path.name != shard
    )
    if missing:
        raise UnmappedTensorsError(
            f"{len(missing)} tensors of {index} are not in the shard it names: {listed(missing)}; "
            "index and shards are not of the same checkpoint, download both again"
        )
    extra = sorted(name for name in tensors if name not in weight_map)
    if extra:
        raise UnmappedTensorsError(
            f"{len(extra)} tensors of the shards are not in {index}: {listed(extra)}; "
            "index and shards are not of the same checkpoint, download both again"
        )
