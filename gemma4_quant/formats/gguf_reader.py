"""Read a GGUF file into a Model; nothing in the file is believed before it is checked.

Header bytes come through a buffer that grows with what has really been parsed, so a file that claims 2⁶⁰ strings
costs nothing. Arrays are located, not decoded: opening a file with 262,144 tokens only walks their lengths.
"""

import struct
from itertools import pairwise
from math import prod
from pathlib import Path

from gemma4_quant.errors import GgufError
from gemma4_quant.formats.gguf_header import MAGIC, TensorInfo, align
from gemma4_quant.ggml import ALIGNMENT, GgmlType, block_size, row_bytes
from gemma4_quant.metadata import Metadata, Value, ValueType, get_int, scalar_bytes
from gemma4_quant.model import DataFile, FileRows, Model, Tensor

_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_NAME_BYTES = 64  # GGML_MAX_NAME, with its final zero
_MAX_KEY_BYTES = 65_535  # GGUF specification
_MAX_STRING_BYTES = 16 << 20  # larger than any real template, small enough to load
_MAX_HEADER_BYTES = 128 << 20  # Gemma 4's vocabulary takes 16 MB
_MAX_ITEMS = 1 << 22  # of an array; Gemma 4 has 514,906 merges
_MAX_TENSORS = _MAX_KEYS = 1 << 16  # the largest models have some thousand tensors
_MAX_ALIGNMENT = 1 << 16  # the largest page of memory in use
_READ_AHEAD = 1 << 20
_SUPPORTED_VERSIONS = (2, 3)


def read_gguf(path: Path) -> Model:
    """Open a GGUF file; raises GgufError (or InputError) saying which key, tensor or byte is wrong."""
    file = DataFile(path)
    cursor = _Cursor(file)
    if file.n_bytes < 4 or cursor.take(4, "magic") != MAGIC:
        raise GgufError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    version = cursor.uint32("version")
    if version not in _SUPPORTED_VERSIONS:
        hint = "a big-endian file? " if version & 0xFFFF == 0 else ""
        raise GgufError(f"{path} has GGUF version {version}; {hint}readable are versions 2 and 3")
    n_tensors = cursor.count("number of tensors", _MAX_TENSORS)
    n_keys = cursor.count("number of metadata keys", _MAX_KEYS)
    metadata = _read_metadata(cursor, n_keys)
    infos = [_read_tensor_info(cursor) for _ in range(n_tensors)]
    alignment = _alignment(path, metadata)
    data_start = align(cursor.at, alignment)
    return Model(path, metadata, _locate(file, infos, data_start, alignment))


def _alignment(path: Path, metadata: Metadata) -> int:
    try:
        alignment = get_int(metadata, "general.alignment", ALIGNMENT)
    except GgufError as error:
        raise GgufError(f"{path}: {error}") from error
    if not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise GgufError(f"{path}: general.alignment is {alignment}, not a power of two up to {_MAX_ALIGNMENT}")
    return alignment


class _Cursor:
    """Position in the header, with a window of bytes around it."""

    def __init__(self, file: DataFile) -> None:
        self.file = file
        self.at = 0
        self._window = b""
        self._window_start = 0

    def take(self, n_bytes: int, what: str) -> bytes:
        """Return the next bytes and move on."""
        self._ensure(n_bytes, what)
        start = self.at - self._window_start
        self.at += n_bytes
        return self._window[start : start + n_bytes]

    def uint32(self, what: str) -> int:
        return int(struct.unpack("<I", self.take(4, what))[0])

    def uint64(self, what: str) -> int:
        return int(struct.unpack("<Q", self.take(8, what))[0])

    def count(self, what: str, limit: int) -> int:
        """Return a count of things that each take at least a byte, so it cannot exceed what is left."""
        number = self.uint64(what)
        if number > limit:
            raise self.error(f"{what} is {number}, at most {limit} are allowed")
        if number > self.file.n_bytes - self.at:
            raise self.error(f"{what} is {number}, more than the file has bytes")
        return number

    def string(self, what: str, max_bytes: int) -> str:
        n_bytes = self.uint64(f"length of {what}")
        if n_bytes > max_bytes:
            raise self.error(f"{what} is {n_bytes} bytes long, at most {max_bytes} are allowed")
        try:
            return self.take(n_bytes, what).decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 text") from error

    def string_array(self, count: int, what: str) -> bytes:
        """Return the bytes of `count` strings; walks their lengths, in a window that doubles as they turn up."""
        length_at = struct.Struct("<Q").unpack_from
        # local names, because a vocabulary has 777,050 strings
        window = self._window
        start = at = self.at - self._window_start
        last = len(window) - 8  # where a length can begin
        for i in range(count):
            if at > last:
                seen = at - start
                self._ensure(seen + max(8, seen, _READ_AHEAD), what, partial=True)
                window, start = self._window, self.at - self._window_start
                at, last = start + seen, len(window) - 8
                if at > last:
                    raise self.error(f"{what} ends after {i} of {count} strings")
            (length,) = length_at(window, at)
            if length > _MAX_STRING_BYTES:
                raise self.error(f"{what}[{i}] is {length} bytes long")
            at += 8 + length
        return self.take(at - start, what)

    def error(self, message: str) -> GgufError:
        return GgufError(f"{self.file.path}, byte {self.at}: {message}; the file is damaged or cut short")

    def _ensure(self, n_bytes: int, what: str, *, partial: bool = False) -> None:
        have = self._window_start + len(self._window) - self.at
        if n_bytes <= have:
            return
        left = self.file.n_bytes - self.at
        if n_bytes > left and not partial:
            raise self.error(f"{what} needs {n_bytes} bytes, {left} are left")
        if self.at + n_bytes > _MAX_HEADER_BYTES:
            raise self.error(f"{what} would make the header larger than {_MAX_HEADER_BYTES} bytes")
        wanted = min(left, max(n_bytes, _READ_AHEAD))
        self._window = self.file.read(self.at, wanted)
        self._window_start = self.at


def _read_metadata(cursor: _Cursor, n_keys: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(n_keys):
        key = cursor.string("a metadata key", _MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.error(f"the key {key} occurs twice")
        metadata[key] = _read_value(cursor, key)
    return metadata


def _read_value(cursor: _Cursor, key: str) -> Value:
    kind = _value_type(cursor, key)
    if kind is ValueType.STRING:
        text = cursor.string(key, _MAX_STRING_BYTES).encode()
        return Value(kind, struct.pack("<Q", len(text)) + text)
    if kind is not ValueType.ARRAY:
        return Value(kind, cursor.take(scalar_bytes(kind), key))
    item = _value_type(cursor, key)
    if item is ValueType.ARRAY:
        raise cursor.error(f"{key} is an array of arrays, which llama.cpp does not read either")
    count = cursor.count(f"length of {key}", _MAX_ITEMS)
    if item is ValueType.STRING:
        data = cursor.string_array(count, key)
    else:
        data = cursor.take(count * scalar_bytes(item), key)
    return Value(kind, data, item, count)


def _value_type(cursor: _Cursor, key: str) -> ValueType:
    number = cursor.uint32(f"type of {key}")
    if number not in set(ValueType):
        raise cursor.error(f"{key} has the unknown value type {number}")
    return ValueType(number)


def _read_tensor_info(cursor: _Cursor) -> TensorInfo:
    name = cursor.string("a tensor name", _MAX_NAME_BYTES - 1)
    n_dims = cursor.uint32(f"dimensions of {name}")
    if not 1 <= n_dims <= _MAX_DIMS:
        raise cursor.error(f"tensor {name} has {n_dims} dimensions; 1 to {_MAX_DIMS} are allowed")
    ne = [cursor.uint64(f"shape of {name}") for _ in range(n_dims)]
    if min(ne) < 1 or prod(ne) >= 1 << 63:
        raise cursor.error(f"tensor {name} has the impossible shape {ne}")
    number = cursor.uint32(f"type of {name}")
    if number not in set(GgmlType):
        raise cursor.error(f"tensor {name} has the unknown type {number}")
    kind = GgmlType(number)
    if ne[0] % block_size(kind).n_weights:
        raise cursor.error(f"rows of tensor {name} ({ne[0]} weights) are not whole {kind.name} blocks")
    return TensorInfo(name, tuple(reversed(ne)), kind, cursor.uint64(f"offset of {name}"))


def _locate(file: DataFile, infos: list[TensorInfo], data_start: int, alignment: int) -> list[Tensor]:
    tensors = []
    names: set[str] = set()
    for info in infos:
        if info.name in names:
            raise GgufError(f"{file.path}: tensor {info.name} occurs twice")
        names.add(info.name)
        if info.offset % alignment:
            raise GgufError(f"{file.path}: tensor {info.name} is not aligned to {alignment} bytes")
        rows = FileRows(file, data_start + info.offset, row_bytes(info.type, info.shape[-1]))
        tensor = Tensor(info.name, info.shape, info.type, rows)
        if rows.offset + tensor.n_bytes > file.n_bytes:
            raise GgufError(
                f"{file.path} is cut short: tensor {info.name} ends at byte {rows.offset + tensor.n_bytes}, "
                f"the file at {file.n_bytes}; download or convert it again"
            )
        tensors.append(tensor)
    _refuse_overlaps(file, tensors)
    return tensors


def _refuse_overlaps(file: DataFile, tensors: list[Tensor]) -> None:
    def start(tensor: Tensor) -> int:
        assert isinstance(tensor.source, FileRows)
        return tensor.source.offset

    by_offset = sorted(tensors, key=start)
    for before, after in pairwise(by_offset):
        if start(before) + before.n_bytes > start(after):
            raise GgufError(f"{file.path}: the data of {before.name} and {after.name} overlap")
