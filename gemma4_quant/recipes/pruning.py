"""Taking whole layers out of a model, with everything that has a part for each layer.

llama-quantize only renames tensors and counts layers; lists of one entry a layer and the per-layer embeddings stay
too long there, and such a file does not load.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from gemma4_quant.arrays import ByteRows
from gemma4_quant.errors import InputError, ShapeError
from gemma4_quant.ggml import block_size, row_bytes
from gemma4_quant.metadata import Metadata, Value, ValueType, get_int, get_string, numbers, uint32
from gemma4_quant.model import DataFile, Model, RowSource, Tensor

_LAYER = re.compile(r"^blk\.(\d+)\.")
_PER_LAYER_COLUMNS = "per_layer_token_embd.weight"
_PER_LAYER_ROWS = "per_layer_model_proj.weight"


@dataclass(frozen=True)
class SelectedColumns:
    """Parts of each row of a source: the byte ranges (start, stop), one after the other."""

    source: RowSource
    ranges: tuple[tuple[int, int], ...]

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop; see RowSource."""
        rows = self.source.read_rows(start, stop)
        return np.concatenate([rows[:, first:last] for first, last in self.ranges], axis=1)

    @property
    def identity(self) -> bytes:
        """Return the source's identity and the ranges; see RowSource."""
        return f"columns {self.ranges} ".encode() + self.source.identity

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the source's files; see RowSource."""
        return self.source.files


@dataclass(frozen=True)
class SelectedRows:
    """Some blocks of block_rows rows of a source, by their numbers."""

    source: RowSource
    block_rows: int
    blocks: tuple[int, ...]

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop; see RowSource."""
        parts = []
        for block in range(start // self.block_rows, -(-stop // self.block_rows)):
            first, last = max(start, block * self.block_rows), min(stop, (block + 1) * self.block_rows)
            moved = (self.blocks[block] - block) * self.block_rows
            parts.append(self.source.read_rows(first + moved, last + moved))
        return np.concatenate(parts)

    @property
    def identity(self) -> bytes:
        """Return the source's identity and the blocks; see RowSource."""
        return f"rows {self.block_rows} {self.blocks} ".encode() + self.source.identity

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the source's files; see RowSource."""
        return self.source.files


def parse_layers(text: str) -> tuple[int, ...]:
    """Read `L0,L1,…`, in any order; raises InputError when a part is no layer number."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"{text!r} is not a list of layers such as 3,7,11")
    return tuple(sorted({int(part) for part in parts}))


def pruned(model: Model, layers: Iterable[int]) -> Model:
    """Return the model without some layers, the others renumbered.

    Raises InputError for layers that it has not, or without which llama.cpp could not run the rest: those whose keys
    and values the last layers read, and the last global or local one.
    """
    dropped = frozenset(layers)
    if not dropped:
        return model
    architecture = get_string(model.metadata, "general.architecture")
    if architecture != "gemma4":
        raise InputError(f"layers of a {architecture} cannot be pruned: they belong to those of its target")
    n_layers = get_int(model.metadata, "gemma4.block_count")
    if outside := sorted(layer for layer in dropped if layer >= n_layers):
        raise InputError(f"there is no layer {outside[0]} to prune; the model has layers 0 to {n_layers - 1}")
    kept = tuple(layer for layer in range(n_layers) if layer not in dropped)
    n_shared = get_int(model.metadata, "gemma4.attention.shared_kv_layers", 0)
    _refuse_breaking_attention(model.metadata, kept, n_layers, n_shared)
    metadata = _pruned_metadata(model.metadata, kept, n_layers, n_shared)
    tensors = [t for t in (_pruned_tensor(t, kept, n_layers, model.metadata) for t in model.tensors) if t is not None]
    return replace(model, metadata=metadata, tensors=tensors)


T = TypeVar("T")


def pruned_importance(importance: Mapping[str, T], layers: Iterable[int]) -> dict[str, T]:
    """Return statistics under the names that tensors have after pruning, without those of columns that are gone."""
    dropped = frozenset(layers)
    if not dropped:
        return dict(importance)
    renamed = {}
    for name, rows in importance.items():
        found = _LAYER.match(name)
        if found is None and name != _PER_LAYER_COLUMNS:
            renamed[name] = rows
        elif found is not None and (layer := int(found[1])) not in dropped:
            renamed[_LAYER.sub(f"blk.{layer - sum(gone < layer for gone in dropped)}.", name)] = rows
    return renamed


def _refuse_breaking_attention(metadata: Metadata, kept: Sequence[int], n_layers: int, n_shared: int) -> None:
    first_shared = n_layers - n_shared
    if n_shared:
        read = {first_shared - 2, first_shared - 1}
        if lost := sorted(read - set(kept)):
            raise InputError(
                f"layer {lost[0]} cannot be pruned: the layers from {first_shared} on read the keys and values of "
                f"layers {first_shared - 2} and {first_shared - 1}"
            )
    pattern = metadata.get("gemma4.attention.sliding_window_pattern")
    if pattern is None or pattern.item is None or pattern.count != n_layers:
        if len(kept) < 2:
            raise InputError("at least two layers must remain")
        return
    is_local = pattern.array()
    if set(is_local[list(kept)].tolist()) != set(is_local.tolist()):
        raise InputError("a local and a global layer must remain")


def _pruned_metadata(metadata: Metadata, kept: Sequence[int], n_layers: int, n_shared: int) -> dict[str, Value]:
    """Return metadata with fewer layers; every list below `gemma4.` with an entry a layer loses the others'."""
    new = dict(metadata)
    for key, value in metadata.items():
        if key.startswith("gemma4.") and value.count == n_layers and value.item not in (None, ValueType.STRING):
            new[key] = numbers(value.item, value.array()[list(kept)])
    new["gemma4.block_count"] = uint32(len(kept))
    if n_shared:
        new["gemma4.attention.shared_kv_layers"] = uint32(sum(layer >= n_layers - n_shared for layer in kept))
    return new


def _pruned_tensor(tensor: Tensor, kept: Sequence[int], n_layers: int, metadata: Metadata) -> Tensor | None:
    if found := _LAYER.match(tensor.name):
        layer = int(found[1])
        return replace(tensor, name=_LAYER.sub(f"blk.{kept.index(layer)}.", tensor.name)) if layer in kept else None
    width = get_int(metadata, "gemma4.embedding_length_per_layer_input", 0)
    if tensor.name == _PER_LAYER_COLUMNS and tensor.n_cols == width * n_layers:
        if width % block_size(tensor.type).n_weights:
            raise ShapeError(f"{tensor.name}: a layer's {width} weights are not whole {tensor.type.name} blocks")
        n_bytes = row_bytes(tensor.type, width)
        columns = SelectedColumns(tensor.source, tuple((layer * n_bytes, (layer + 1) * n_bytes) for layer in kept))
        return replace(tensor, shape=(*tensor.shape[:-1], width * len(kept)), source=columns)
    if tensor.name == _PER_LAYER_ROWS and tensor.n_rows == width * n_layers:
        rows = SelectedRows(tensor.source, width, tuple(kept))
        return replace(tensor, shape=(width * len(kept), tensor.n_cols), source=rows)
    return tensor
