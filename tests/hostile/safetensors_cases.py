"""Safetensors headers and index files that lie, and directories with traps in them."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cases import Case
from tiny_models import write_tiny

SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"

_SIZES = (-1, 0, 1, 7, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64, 10**400, 1.0, True, None, "1", [1], {})

Header = dict[str, Any]


def header_cases(work: Path) -> Iterator[Case]:
    """Yield headers with one thing wrong."""
    directory = write_tiny(work / "model")
    path = directory / SHARD
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    right, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for name, header in changed_headers(right):
        encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
        yield Case(f"header with {name}", directory)
    for name, changed in changed_files(content, length).items():
        path.write_bytes(changed)
        yield Case(f"shard with {name}", directory)


def changed_headers(right: Header) -> Iterator[tuple[str, Header | bytes]]:
    """Yield headers with one thing wrong, by what that is; as bytes where JSON has no form for it."""
    first, second, *_ = (name for name in right if name != "__metadata__")
    for field in ("dtype", "shape", "data_offsets"):
        for value in (*_SIZES, "F32", "f32", "BF16 ", "F4", "", [], [[]], [2**62, 4], [0, 0], [4, 0], [0] * 1000):
            yield f"{field} {str(value)[:40]!r}", {**right, first: {**right[first], field: value}}
    for size in _SIZES:
        for at in (0, 1):
            for field in ("shape", "data_offsets"):
                values = [*right[first][field], 1][:2]
                values[at] = size
                yield f"{field}[{at}] {str(size)[:40]}", {**right, first: {**right[first], field: values}}
    begin, end = right[first]["data_offsets"]
    for name, offsets in {
        "data that overlaps the next": [begin, end + 64],
        "data that begins in the middle": [begin + 2, end + 2],
        "data backwards": [end, begin],
        "data of the next tensor": right[second]["data_offsets"],
        "data past the end": [begin + (1 << 40), end + (1 << 40)],
    }.items():
        yield name, {**right, first: {**right[first], "data_offsets": offsets}}
    for value in (None, 1, "x", [], {}, True):
        yield f"an entry that is {value}", {**right, first: value}
        yield f"metadata that is {value}", {**right, "__metadata__": value}
    yield "no tensor", {}
    yield "a name of a megabyte", {**right, "n" * 1_000_000: right[first]}
    yield "a name with control characters", {**right, "\x1b[31m\n\0": right[first]}
    yield "a name with half a surrogate pair", {**right, "\ud800": right[first]}
    text = json.dumps(right)
    yield "a tensor twice", (text[:-1] + f", {json.dumps(first)}: {json.dumps(right[first])}}}").encode()
    yield "a field twice", text.replace('"dtype"', '"dtype": "F32", "dtype"', 1).encode()
    yield "100,000 brackets", b"[" * 100_000
    yield "30,000 tensors too many", {**right, **{f"t{number}": right[first] for number in range(30_000)}}
    empty = {"dtype": "BF16", "shape": [0], "data_offsets": [begin, begin]}
    yield "a thousand empty tensors", {**right, **{f"model.t{number}": empty for number in range(1000)}}


def changed_files(content: bytes, length: int) -> dict[str, bytes]:
    """Return files that are wrong beside their header, of `length` bytes, by what is wrong."""
    lengths = (0, 1, length - 1, length + 1, len(content), 100_000_001, 2**31, 2**63, 2**64 - 1)
    return {
        **{f"a header length of {size}": struct.pack("<Q", size) + content[8:] for size in lengths},
        **{f"{size} bytes": content[:size] for size in (0, 1, 7, 8, 9, 8 + length, 8 + length + 1, len(content) - 1)},
        "a byte too many": content + b"\0",
        "a zip file's beginning": b"PK\x03\x04" + content[4:],
        "a GGUF's beginning": b"GGUF" + content[4:],
        "big-endian length": struct.pack(">Q", length) + content[8:],
        "NaN for a weight": content[:-2] + b"\xff\x7f",
    }


def index_cases(work: Path) -> Iterator[Case]:
    """Yield index files that name what they must not."""
    directory = write_tiny(work / "model")
    (work / "outside.safetensors").write_bytes((directory / SHARD).read_bytes())
    path = directory / INDEX
    weight_map = json.loads(path.read_text())["weight_map"]
    names = (
        "../outside.safetensors",
        str(work / "outside.safetensors"),
        "missing.safetensors",
        ".hidden.safetensors",
        "",
        ".",
        "..",
        "/",
        "a" * 300 + ".safetensors",
        "config.json",
        f"./{SHARD}",
        f"sub/../{SHARD}",
        f"{SHARD}\0",
        f"{SHARD}/",
        SHARD.upper(),
        "C:\\windows.safetensors",
        "\ud800.safetensors",
        "file:///etc/passwd.safetensors",
    )
    for name in names:
        path.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, name)}))
        yield Case(f"index that names {name[:60]!r}", directory)
        path.write_text(json.dumps({"weight_map": {**weight_map, next(iter(weight_map)): name}}))
        yield Case(f"index that names {name[:60]!r} once", directory)
    path.write_text(json.dumps({"weight_map": {**weight_map, "model.more": SHARD}}))
    yield Case("index with a tensor too many", directory)
    path.write_text(json.dumps({"weight_map": dict(list(weight_map.items())[1:])}))
    yield Case("index with a tensor too few", directory)


def trap_cases(work: Path) -> Iterator[Case]:
    """Yield directories where a file is a link, a pipe, a device or a directory."""
    (work / "secret").mkdir()
    (work / "secret" / "file").write_text("{}")
    traps: dict[str, Callable[[Path], None]] = {
        "a link out": lambda path: path.symlink_to(work / "secret" / "file"),
        "a link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
        "a link to itself": lambda path: path.symlink_to(path),
        "a link to zeros": lambda path: path.symlink_to("/dev/zero"),
        "a link to its directory": lambda path: path.symlink_to(path.parent),
        "a pipe": os.mkfifo,
        "a directory": lambda path: path.mkdir(),
        "gone": lambda _path: None,
    }
    names = (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "README.md",
        INDEX,
        SHARD,
    )
    sound = write_tiny(work / "sound")
    for number, name in enumerate(names):
        for trap, make in traps.items():
            directory = work / f"{number}-{trap.replace(' ', '-')}"
            shutil.copytree(sound, directory)
            (directory / name).unlink(missing_ok=True)
            make(directory / name)
            yield Case(f"{name} is {trap}", directory)
    for trap, make in traps.items():
        path = work / f"whole-{trap.replace(' ', '-')}"
        make(path)
        yield Case(f"the checkpoint is {trap}", path)


def card_cases(work: Path) -> Iterator[Case]:
    """Yield model cards and templates that are bombs or of the wrong kind."""
    directory = write_tiny(work / "model")
    anchors = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12)
    )
    cards = {
        "a billion laughs": anchors + "tags: *a12\n",
        "a tag that runs code": "license: !!python/object/apply:os.system ['touch out']\n",
        "a list that holds itself": "tags: &a [*a]\n",
        "an object that holds itself": "base_model: &a {x: *a}\n",
        "3,000 brackets": "tags: " + "[" * 3_000 + "\n",
        "a date": "license: 2001-12-14\n",
        "an endless number": "license: " + "9" * 60_000 + "\n",
        "a NaN": "tags: .nan\nlicense: .inf\n",
        "bytes": "license: !!binary aGVsbG8=\n",
        "a set": "tags: !!set {a, b}\n",
        "no end": "license: x\n" * 10,
        "objects for texts": "license: {a: b}\nlicense_name: [1]\nlanguage: {a: 1}\nbase_model: [[1], {a: 2}]\n",
        "numbers for texts": "license: 1\ntags: 2\nlanguage: 3\nbase_model: 4\nname: 5\nauthor: 6\ndatasets: 7\n",
        "control characters": 'model_name: "\\e[31m\\0\\n"\n',
        "a path for a name": "model_name: ../../../etc/passwd\n",
        "a name of 60,000 letters": f"model_name: {'x' * 60_000}\n",
    }
    for name, front in cards.items():
        (directory / "README.md").write_text(f"---\n{front}---\n")
        yield Case(f"README.md with {name}", directory)
    for name, content in {"not UTF-8": b"---\n\xff\xfe\n---\n", "5 MB": b"---\n" + b"x" * (5 << 20)}.items():
        (directory / "README.md").write_bytes(content)
        yield Case(f"README.md that is {name}", directory)
