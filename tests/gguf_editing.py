"""Copies of GGUF files with something changed, to see whether anyone notices."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from gemma4_quant.arrays import ByteRows
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.metadata import Value
from gemma4_quant.model import ArrayRows, Model, Tensor
from gemma4_quant.writing.plan import Assignment, make_plan

Rows = Callable[[ByteRows], ByteRows]


def rewrite(
    source: Path,
    output: Path,
    *,
    values: Mapping[str, Value | None] | None = None,
    rows: Mapping[str, Rows] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    names: Mapping[str, str | None] | None = None,
) -> Path:
    """Copy a GGUF file and return the copy's path.

    values: metadata to set, None to leave out. rows: functions of a tensor's bytes, (n_rows, row_bytes), by name.
    shapes: other shapes of as many bytes. names: other names of tensors, None to leave one out.
    """
    model = read_gguf(source)
    metadata = {**model.metadata, **(values or {})}
    tensors = [_changed(tensor, rows or {}, shapes or {}) for tensor in model.tensors]
    renamed = {tensor.name: (names or {}).get(tensor.name, tensor.name) for tensor in tensors}
    kept = [
        Tensor(name, tensor.shape, tensor.type, tensor.source)
        for tensor in tensors
        if (name := renamed[tensor.name]) is not None
    ]
    plan = make_plan(
        {key: value for key, value in metadata.items() if value is not None},
        [Assignment(tensor, tensor.type) for tensor in kept],
    )
    (file,) = plan.files
    with output.open("wb") as stream:  # not through the writer, which refuses what tests want broken
        stream.write(file.header)
        for planned in file.tensors:
            stream.seek(planned.offset)
            stream.write(planned.tensor.source.read_rows(0, planned.tensor.n_rows).tobytes())
        stream.truncate(file.n_bytes)
    return output


def rows_of(model: Model, name: str) -> ByteRows:
    """Return all bytes of a tensor, (n_rows, row_bytes)."""
    tensor = next(tensor for tensor in model.tensors if tensor.name == name)
    return tensor.source.read_rows(0, tensor.n_rows)


def overwrite(path: Path, tensor_name: str, row: int, data: bytes) -> None:
    """Overwrite the beginning of a tensor's row in a file."""
    tensor = next(tensor for tensor in read_gguf(path).tensors if tensor.name == tensor_name)
    content = bytearray(path.read_bytes())
    stored = tensor.source.read_rows(row, row + 1).tobytes()
    at = bytes(content).find(stored)
    assert at >= 0
    content[at : at + len(data)] = data
    path.write_bytes(content)


def _changed(tensor: Tensor, rows: Mapping[str, Rows], shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    source = tensor.source
    if tensor.name in rows:
        changed = np.ascontiguousarray(rows[tensor.name](source.read_rows(0, tensor.n_rows)))
        source = ArrayRows(lambda: changed)
    return Tensor(tensor.name, shapes.get(tensor.name, tensor.shape), tensor.type, source)
