"""GGUF files that lie: absurd numbers in every field, wrong values of every key, cuts at every border."""

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cases import Case
from tiny_models import write_tiny_gguf, write_tiny_importance

from gemma4_quant.formats.gguf_header import encode_header
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.metadata import (
    Metadata,
    Value,
    ValueType,
    boolean,
    float32,
    int32,
    numbers,
    string,
    strings,
    uint32,
)

_ABSURD_32 = (0, 1, 5, 7, 255, 2**31 - 1, 2**31, 2**32 - 1)
_ABSURD_64 = (0, 1, 3, 2**20, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass(frozen=True)
class Field:
    """A number in a header. at: its first byte; n_bytes: 4 or 8."""

    name: str
    at: int
    n_bytes: int


def structure_cases(work: Path) -> Iterator[Case]:
    """Yield files with one structural number replaced."""
    content = bytearray(write_tiny_gguf(work).read_bytes())
    path = work / "damaged.gguf"
    for i, field in enumerate(_fields(bytes(content))):
        form, absurd = ("<I", _ABSURD_32) if field.n_bytes == 4 else ("<Q", _ABSURD_64)
        old = struct.unpack_from(form, content, field.at)[0]
        for number in {*absurd[i % 3 :: 3], old + 1, max(0, old - 1)} - {old}:
            struct.pack_into(form, content, field.at, number)
            path.write_bytes(content)
            yield Case(f"{field.name} = {number}", path, is_quick=True)
        struct.pack_into(form, content, field.at, old)


def cut_cases(work: Path) -> Iterator[Case]:
    """Yield files that end at, just before or just after each border of the header, and within the data."""
    content = write_tiny_gguf(work).read_bytes()
    path = work / "cut.gguf"
    borders = [field.at for field in _fields(content)]
    lengths = {0, 3, *borders, *(at + 1 for at in borders), *range(borders[-1], len(content), len(content) // 20)}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        yield Case(f"cut after {length} bytes", path, is_quick=True)


def document_cases(work: Path) -> Iterator[Case]:
    """Yield files that are wrong as a whole."""
    source = write_tiny_gguf(work)
    content = source.read_bytes()
    model = read_gguf(source)
    path = work / "whole.gguf"
    bare = {
        "another magic": b"GGML" + content[4:],
        "a safetensors file": struct.pack("<Q", 2) + b"{}",
        "a zip file": b"PK\x03\x04" + bytes(100),
        "version 1": content[:4] + struct.pack("<I", 1) + content[8:],
        "version 4": content[:4] + struct.pack("<I", 4) + content[8:],
        "big-endian": content[:4] + struct.pack(">I", 3) + content[8:],
        "only metadata": encode_header(model.metadata, []),
        "no metadata": encode_header({}, []),
        "only an architecture": encode_header({"general.architecture": string("gemma4")}, []),
        "another architecture": encode_header({"general.architecture": string("llama")}, []),
        "an architecture of 100,000 letters": encode_header({"general.architecture": string("x" * 100_000)}, []),
        "an architecture with control characters": encode_header(
            {"general.architecture": string("\x1b[31m\n\0")}, []
        ),
        "an architecture that is a number": encode_header({"general.architecture": uint32(4)}, []),
        "a million empty strings": encode_header({"k": strings([b""] * 10**6)}, []),
        "200,000 keys": _key_head(b"", n_keys=200_000)
        + b"".join(struct.pack("<Q6sIB", 6, b"%06d" % number, ValueType.UINT8, 0) for number in range(200_000)),
    }
    for name, changed in bare.items():
        path.write_bytes(changed)
        yield Case(name, path)
    yield from _holes(path, content)
    for name, make in {"pipe": os.mkfifo, "directory": os.mkdir}.items():
        make(work / name)
        yield Case(f"a {name}", work / name)
    (work / "link").symlink_to("/dev/zero")
    yield Case("a link to zeros", work / "link")
    yield Case("no file", work / "missing.gguf")
    yield Case("a name too long", work / ("n" * 5000))


def _holes(path: Path, content: bytes) -> Iterator[Case]:
    """Yield files whose size is that of a hole after a few bytes."""
    numbers, texts = ValueType.UINT8, ValueType.STRING
    holes = {
        "a terabyte of nothing after the end": (content, 1 << 40),
        "a text of 70 MB": (_key_head(b"k") + struct.pack("<IQ", texts, 70 << 20), 80 << 20),
        "an array of 120 MB": (_key_head(b"k") + struct.pack("<IIQ", ValueType.ARRAY, numbers, 120 << 20), 130 << 20),
        "an array of 2 GB": (_key_head(b"k") + struct.pack("<IIQ", ValueType.ARRAY, numbers, 2 << 30), 3 << 30),
        "8 billion empty texts": (_key_head(b"k") + struct.pack("<IIQ", ValueType.ARRAY, texts, 1 << 33), 1 << 40),
        "8 billion empty tensors": (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 33, 0), 1 << 40),
        "8 billion empty keys": (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 33), 1 << 40),
    }
    for name, (begin, size) in holes.items():
        path.write_bytes(begin)
        os.truncate(path, size)
        yield Case(f"{name} in a hole", path, is_quick=True)
    path.unlink()


def _key_head(key: bytes, n_keys: int = 1) -> bytes:
    """Return the beginning of a file without tensors, up to the type of its first value if there is a key."""
    begin = struct.pack("<4sIQQ", b"GGUF", 3, 0, n_keys)
    return begin + struct.pack("<Q", len(key)) + key if key else begin


def metadata_cases(work: Path) -> Iterator[Case]:
    """Yield a sample of all_metadata_cases that has every key."""
    return all_metadata_cases(work, every=6)


def few_metadata_cases(work: Path) -> Iterator[Case]:
    """Yield a smaller sample."""
    return all_metadata_cases(work, every=32)


def all_metadata_cases(work: Path, every: int = 1) -> Iterator[Case]:
    """Yield sound files with one key missing or of a wrong value; llama.cpp aborts on many of them.

    every: of the values of a key, only one in so many, other ones for other keys.
    """
    for kind in ("e", "moe"):
        source = write_tiny_gguf(work / kind, kind)
        content = source.read_bytes()
        metadata = read_gguf(source).metadata
        path = work / kind / "changed.gguf"
        keys = [key for key in metadata if kind == "e" or "expert" in key]
        for number, key in enumerate(keys):
            for name, value in list(_wrong_values(metadata[key]))[number % every :: every]:
                path.write_bytes(with_metadata(content, metadata, key, value))
                yield Case(f"{kind}: {key} {name}", path)


def importance_cases(work: Path) -> Iterator[Case]:
    """Yield importance files that are damaged, or of another model."""
    model = write_tiny_gguf(work)
    source = write_tiny_importance(work / "right.gguf", model)
    content = bytearray(source.read_bytes())
    path = work / "importance.gguf"
    for i, field in enumerate(_fields(bytes(content))):
        form, absurd = ("<I", _ABSURD_32[i % 6 :: 6]) if field.n_bytes == 4 else ("<Q", _ABSURD_64[i % 6 :: 6])
        old = struct.unpack_from(form, content, field.at)[0]
        for number in {*absurd} - {old}:
            struct.pack_into(form, content, field.at, number)
            path.write_bytes(content)
            yield Case(f"{field.name} = {number}", path)
        struct.pack_into(form, content, field.at, old)
    start = len(content) - 64
    for name, number in {"NaN": math.nan, "infinity": math.inf, "a negative number": -1.0, "zeros": 0.0}.items():
        changed = bytearray(content)
        for at in range(start, len(content), 4):
            struct.pack_into("<f", changed, at, number)
        path.write_bytes(changed)
        yield Case(f"{name} for a sum", path)
    metadata = read_gguf(source).metadata
    for key in metadata:
        for name, value in _wrong_values(metadata[key]):
            path.write_bytes(with_metadata(bytes(content), metadata, key, value))
            yield Case(f"{key} {name}", path)
    path.write_bytes(model.read_bytes())
    yield Case("a model", path)
    path.write_bytes(encode_header(metadata, []))
    yield Case("no statistics", path)
    os.mkfifo(work / "pipe")
    yield Case("a pipe", work / "pipe")
    yield Case("a directory", work)
    yield Case("no file", work / "missing.gguf")


def with_metadata(content: bytes, metadata: Metadata, key: str, value: Value | None) -> bytes:
    """Replace a value of a file, keeping its tensors; None removes the key."""
    n_tensors = struct.unpack_from("<Q", content, 8)[0]
    fields = _fields(content)
    infos_at = next((field.at for field in fields if field.name.startswith("length of tensor name")), len(content))
    infos_end = _end_of_infos(content, fields)
    changed = {name: old for name, old in metadata.items() if name != key}
    if value is not None:
        changed = {name: value if name == key else old for name, old in metadata.items()}
    raw = b"".join(
        struct.pack("<Q", len(name.encode())) + name.encode() + each.encoded() for name, each in changed.items()
    )
    begin = struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, len(changed)) + raw + content[infos_at:infos_end]
    return begin + bytes(-len(begin) % 32) + content[infos_end + -infos_end % 32 :]


def _end_of_infos(content: bytes, fields: list[Field]) -> int:
    offsets = [field.at for field in fields if field.name.startswith("offset of")]
    return offsets[-1] + 8 if offsets else len(content)


def _fields(content: bytes) -> list[Field]:
    """Walk a sound header and return every number in it that says how much follows, or what or where it is."""
    fields = [Field("version", 4, 4), Field("number of tensors", 8, 8), Field("number of keys", 16, 8)]
    n_tensors, n_keys = struct.unpack_from("<QQ", content, 8)
    at = 24
    for _ in range(n_keys):
        fields.append(Field(f"length of key at {at}", at, 8))
        (length,) = struct.unpack_from("<Q", content, at)
        key = content[at + 8 : at + 8 + length].decode()
        at += 8 + length
        fields.append(Field(f"type of {key}", at, 4))
        at = _after_value(content, at, key, fields)
    for _ in range(n_tensors):
        fields.append(Field(f"length of tensor name at {at}", at, 8))
        (length,) = struct.unpack_from("<Q", content, at)
        name = content[at + 8 : at + 8 + length].decode()
        at += 8 + length
        fields.append(Field(f"dimensions of {name}", at, 4))
        (n_dims,) = struct.unpack_from("<I", content, at)
        at += 4
        fields += [Field(f"dimension {i} of {name}", at + 8 * i, 8) for i in range(n_dims)]
        at += 8 * n_dims
        fields += [Field(f"type of {name}", at, 4), Field(f"offset of {name}", at + 4, 8)]
        at += 12
    return fields


_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _after_value(content: bytes, at: int, key: str, fields: list[Field]) -> int:
    (kind,) = struct.unpack_from("<I", content, at)
    at += 4
    if kind == ValueType.STRING:
        fields.append(Field(f"length of {key}", at, 8))
        return int(at + 8 + struct.unpack_from("<Q", content, at)[0])
    if kind != ValueType.ARRAY:
        return at + _SCALAR_BYTES[kind]
    item, count = struct.unpack_from("<IQ", content, at)
    fields += [Field(f"item type of {key}", at, 4), Field(f"count of {key}", at + 4, 8)]
    at += 12
    if item != ValueType.STRING:
        return int(at + count * _SCALAR_BYTES[item])
    for i in range(count):
        if i in (0, count - 1):
            fields.append(Field(f"length of {key}[{i}]", at, 8))
        at += 8 + struct.unpack_from("<Q", content, at)[0]
    return at


def _wrong_values(value: Value) -> Iterator[tuple[str, Value | None]]:
    """Yield replacements: none, another type, and what is most wrong for the type."""
    yield "missing", None
    if value.type is ValueType.ARRAY:
        yield from _wrong_arrays(value)
        return
    yield "as an array", numbers(ValueType.INT32, [1, 2, 3])
    old = value.decode()
    if value.type is ValueType.STRING:
        yield "as a number", uint32(7)
        yield "empty", string("")
        yield "not UTF-8", Value(ValueType.STRING, struct.pack("<Q", 2) + b"\xff\xfe")
        yield "with control characters", string("\x1b[31m\0\n")
        return
    yield "as a text", string("x")
    if value.type is ValueType.FLOAT32:
        for number in (0.0, -1.0, math.nan, math.inf, 1e-45, 3e38):
            yield f"{number}", float32(number)
    elif value.type is ValueType.BOOL:
        yield "the opposite", boolean(not old)
        yield "as byte 2", Value(ValueType.BOOL, b"\2")
    else:
        yield "as -1", int32(-1)
        for number in {0, 1, 3, old + 1, 2 * old, 65_536, 2**31, 2**32 - 1} - {old}:
            yield f"{number}", uint32(number)


def _wrong_arrays(value: Value) -> Iterator[tuple[str, Value]]:
    assert value.item is not None
    old, count = value.decode(), value.count
    yield "as a number", uint32(1)
    if value.item is not ValueType.STRING:
        yield "empty", numbers(value.item, [])
        yield "one too few", numbers(value.item, old[:-1])
        yield "one too many", numbers(value.item, [*old, 1])
        yield "of zeros", numbers(value.item, [0] * count)
        yield "of ones", numbers(value.item, [1] * count)
        yield "of texts", strings(["x"] * count)
        if value.item is ValueType.INT32:
            yield "of -1", numbers(ValueType.INT32, [-1] * count)
            yield "of 2**31 - 1", numbers(ValueType.INT32, [2**31 - 1] * count)
        return
    yield "empty", strings([])
    yield "one too few", strings(old[:-1])
    yield "one too many", strings([*old, "more"])
    yield "of one text", strings(["x"] * count)
    yield "of empty texts", strings([""] * count)
    yield "of numbers", numbers(ValueType.INT32, [1] * count)
    yield "not UTF-8", strings([b"\xff%d" % number for number in range(count)])
    yield "with zeros", strings([f"\0{number} \0" for number in range(count)])
    yield "without spaces", strings([f"t{number}" for number in range(count)])
