"""The header of a GGUF file: magic, counts, metadata, and the table of tensors (docs/gguf.md of ggml)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from gemma4_quant.ggml import ALIGNMENT, GgmlType
from gemma4_quant.metadata import Metadata

MAGIC = b"GGUF"
VERSION = 3


@dataclass(frozen=True)
class TensorInfo:
    """A line of the tensor table; shape in numpy order, offset in bytes from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int


def align(n_bytes: int, alignment: int = ALIGNMENT) -> int:
    """Round up to a multiple of `alignment`."""
    return -(-n_bytes // alignment) * alignment


def encode_header(metadata: Metadata, tensors: Sequence[TensorInfo], alignment: int = ALIGNMENT) -> bytes:
    """Return the header up to the first byte of tensor data, padded to `alignment`."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), value.encoded()]
    for tensor in tensors:
        parts += [
            _string(tensor.name),
            struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape)),
            struct.pack("<IQ", tensor.type, tensor.offset),
        ]
    header = b"".join(parts)
    return header + bytes(align(len(header), alignment) - len(header))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
