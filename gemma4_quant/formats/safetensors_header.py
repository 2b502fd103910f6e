"""Headers of safetensors files, checked completely before any tensor is believed to exist.

Format: 8 bytes little-endian header length, a JSON object {name: {dtype, shape, data_offsets}}, then the data
without holes. The checks are those of the format's own reader (safetensors, `Metadata::validate`), with messages
for people.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

from gemma4_quant.errors import CheckpointError, listed
from gemma4_quant.formats.json_input import kind_of, parse_json_object
from gemma4_quant.model import DataFile, FileRows

MAX_HEADER_BYTES = 32 << 20
"""A hundred times the header of the largest Gemma 4 in one file. The format allows 100 MB, which take ten times as
much memory to parse."""

MAX_DIMS = 8
MAX_BYTES = 2**63 - 1

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "C64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
}
"""Bytes of one value of each dtype that fills whole bytes."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file: row-major, `n_bytes` from byte `offset` of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: DataFile
    offset: int
    n_bytes: int

    @property
    def source(self) -> FileRows:
        """The rows of the tensor; a tensor without dimensions is one row."""
        return FileRows(self.file, self.offset, ITEM_BYTES[self.dtype] * (self.shape[-1] if self.shape else 1))


def read_header(file: DataFile) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file, sorted by name.

    Raises CheckpointError when the header is damaged, lies about the file, or the file is not complete.
    """
    if file.n_bytes < 8:
        raise CheckpointError(f"{file.path} has {file.n_bytes} bytes, too few for safetensors; download it again")
    header_bytes = int.from_bytes(file.read(0, 8), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(f"{file.path} is not a safetensors file: its header would have {header_bytes:,} bytes")
    if header_bytes > file.n_bytes - 8:
        raise CheckpointError(f"{file.path} ends within its header; the download is incomplete, fetch it again")
    header = parse_json_object(file.read(8, header_bytes), f"the header of {file.path}", unique_keys=True)
    if not isinstance(header.pop("__metadata__", {}), dict):
        raise CheckpointError(f"the header of {file.path} is damaged: __metadata__ is not an object")
    start = 8 + header_bytes
    tensors = [_stored_tensor(name, header[name], file, start) for name in sorted(header)]
    _check_layout(tensors, file, start)
    return {tensor.name: tensor for tensor in tensors}


def _stored_tensor(name: str, entry: Any, file: DataFile, start: int) -> StoredTensor:
    where = f"{file.path}: tensor {name[:200]!r}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} is {kind_of(entry)} in the header, not an object")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where} has the dtype {str(dtype)[:40]!r}; known are {', '.join(ITEM_BYTES)}")
    shape = _sizes(entry.get("shape"))
    if shape is None or len(shape) > MAX_DIMS:
        raise CheckpointError(f"{where} has no shape: a list of at most {MAX_DIMS} sizes, each zero or more")
    offsets = _sizes(entry.get("data_offsets"))
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has no data_offsets: two positions, the second not before the first")
    n_bytes = prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != n_bytes:
        raise CheckpointError(
            f"{where} takes {offsets[1] - offsets[0]:,} bytes, but {dtype} of shape {list(shape)} needs {n_bytes:,}"
        )
    return StoredTensor(name, dtype, shape, file, start + offsets[0], n_bytes)


def _sizes(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    if not all(type(size) is int and 0 <= size <= MAX_BYTES for size in value):
        return None
    return tuple(value)


def _check_layout(tensors: list[StoredTensor], file: DataFile, start: int) -> None:
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.n_bytes)):
        if tensor.offset != end:
            problem = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise CheckpointError(f"{file.path}: tensor {tensor.name[:200]!r} {problem}; the header is damaged")
        end += tensor.n_bytes
    if end > file.n_bytes:
        cut = [tensor.name for tensor in tensors if tensor.offset + tensor.n_bytes > file.n_bytes]
        raise CheckpointError(
            f"{file.path} is truncated: {file.n_bytes:,} of {end:,} bytes, without the end of {listed(cut)}; "
            "the download is incomplete, fetch it again"
        )
    if end < file.n_bytes:
        raise CheckpointError(
            f"{file.path} has {file.n_bytes - end:,} bytes after its last tensor; it is damaged, fetch it again"
        )
