"""How a model is split into several GGUF files: names of shards, what each holds, and the keys that say so.

llama.cpp's conventions (gguf-py's gguf_writer.py, llama_split_path): `NAME-00001-of-00003.gguf`, all metadata in the
first shard, and in every shard its number from 0, how many there are, and how many tensors they hold together.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gemma4_quant.errors import InputError
from gemma4_quant.metadata import Metadata, Value, int32, uint16

NUMBER_KEY, COUNT_KEY, N_TENSORS_KEY = "split.no", "split.count", "split.tensors.count"
KEYS = (NUMBER_KEY, COUNT_KEY, N_TENSORS_KEY)

MAX_SHARDS = 65_535
"""split.count is 16 bits wide."""

_SUFFIX = ".gguf"
_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_SIZE = re.compile(r"(?P<number>\d{1,12})(?P<unit>[KMG]?)", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}


class SplitRule(Protocol):
    """What decides how many tensors go into each shard."""

    def counts(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Return the number of tensors in each shard, in order; their sum is len(names).

        sizes: bytes of each tensor as it will be written.
        """
        ...


@dataclass(frozen=True)
class SplitLimits:
    """A new shard begins where the next tensor would exceed a limit; None is no limit.

    max_bytes: of tensor data in a shard, as convert_hf_to_gguf.py counts: without header and padding. A larger tensor
    gets a shard of its own.
    """

    max_bytes: int | None = None
    max_tensors: int | None = None

    def counts(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Return the number of tensors in each shard; see SplitRule."""
        counts, n_bytes = [0], 0
        for _, size in zip(names, sizes, strict=True):
            is_full = self.max_tensors is not None and counts[-1] >= self.max_tensors
            is_large = self.max_bytes is not None and n_bytes + size > self.max_bytes
            if counts[-1] and (is_full or is_large):
                counts.append(0)
                n_bytes = 0
            counts[-1] += 1
            n_bytes += size
        return counts


@dataclass(frozen=True)
class KeptSplit:
    """As many tensors in each shard as the source had (Model.shard_sizes)."""

    shard_sizes: tuple[int, ...]

    def counts(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Return the number of tensors in each shard; see SplitRule."""
        del sizes
        return list(self.shard_sizes) or [len(names)]


def parse_size(text: str) -> int:
    """Read a size such as `2G`, `500M`, `100K` or `1000000`; units are decimal, as in convert_hf_to_gguf.py.

    Raises InputError for anything else and for 0.
    """
    match = _SIZE.fullmatch(text.strip())
    n_bytes = int(match["number"]) * _UNITS[match["unit"].upper()] if match else 0
    if not n_bytes:
        raise InputError(f"{text!r} is not a size, such as 2G, 500M, 100K or a number of bytes")
    return n_bytes


def shard_paths(output: Path, count: int) -> tuple[Path, ...]:
    """Return the files of an output: itself when there is one, else a numbered name for each shard."""
    if count == 1:
        return (output,)
    stem = output.name.removesuffix(_SUFFIX)
    return tuple(output.with_name(f"{stem}-{number:05}-of-{count:05}{_SUFFIX}") for number in range(1, count + 1))


def sibling_paths(path: Path, number: int, count: int) -> tuple[Path, ...] | None:
    """Return the paths of all shards, given that of shard `number` (from 0); None when it is not named like one."""
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or (int(match["number"]), int(match["count"])) != (number + 1, count):
        return None
    return shard_paths(path.with_name(match["stem"] + _SUFFIX), count)


def unsplit_name(name: str) -> str:
    """Return a file name without its shard's number, `NAME.gguf`; other names stay as they are."""
    match = _SHARD_NAME.fullmatch(name)
    return name if match is None else match["stem"] + _SUFFIX


def shard_metadata(metadata: Metadata, number: int, count: int, n_tensors: int) -> dict[str, Value]:
    """Return the metadata of shard `number` (from 0) of an output of `count` files."""
    own = {key: value for key, value in metadata.items() if key not in KEYS} if number == 0 else {}
    if count == 1:
        return own
    return own | {NUMBER_KEY: uint16(number), COUNT_KEY: uint16(count), N_TENSORS_KEY: int32(n_tensors)}
