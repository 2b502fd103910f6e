"""Experts saved one by one, as some tools split them, put together as Gemma 4's own checkpoints have them."""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np

from gemma4_quant.arrays import ByteRows
from gemma4_quant.converters.attention_config import MAX_SIZE
from gemma4_quant.errors import CheckpointError, UnmappedTensorsError, listed
from gemma4_quant.formats.checkpoint import Checkpoint, CheckpointTensor, DerivedTensor
from gemma4_quant.model import DataFile, RowSource

_EXPERT = re.compile(
    r"(?P<stack>.*\.experts)\.(?P<number>0|[1-9]\d{0,4})\.(?P<part>gate_up_proj|gate_proj|up_proj|down_proj)\.weight"
)

_PARTS: Mapping[frozenset[str], Mapping[str, tuple[str, ...]]] = {
    frozenset({"gate_proj", "up_proj", "down_proj"}): {
        "down_proj": ("down_proj",),
        "gate_up_proj": ("gate_proj", "up_proj"),
    },
    frozenset({"gate_up_proj", "down_proj"}): {"down_proj": ("down_proj",), "gate_up_proj": ("gate_up_proj",)},
}
"""Matrices that an expert may have → stacks made of them, gates above ups (transformers, Gemma4TextExperts)."""


@dataclass(frozen=True)
class StackedRows:
    """Rows of several tensors, one after the other. parts: sources and their numbers of rows. See RowSource."""

    parts: tuple[tuple[RowSource, int], ...]

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop, from as many parts as they lie in; see RowSource."""
        pieces = []
        number = bisect_right(self._ends, start)
        while start < stop:
            source, n_rows = self.parts[number]
            first = start - (self._ends[number] - n_rows)
            last = min(n_rows, first + stop - start)
            pieces.append(source.read_rows(first, last))
            start += last - first
            number += 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    @property
    def identity(self) -> bytes:
        """Return what identifies the parts and their order; see RowSource."""
        digest = hashlib.sha256()
        for source, n_rows in self.parts:
            digest.update(source.identity + f" {n_rows} ".encode())
        return digest.digest()

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the files of all parts; see RowSource."""
        return tuple(dict.fromkeys(file for source, _ in self.parts for file in source.files))

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(n_rows for _, n_rows in self.parts))


def stack_experts(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the experts of each layer in two tensors; reads no weights.

    Raises UnmappedTensorsError listing what a layer lacks, CheckpointError listing tensors of other sizes or types.
    """
    matches = {name: match for name in checkpoint.tensors if (match := _EXPERT.fullmatch(name))}
    if not matches:
        return checkpoint
    layers: dict[str, dict[int, dict[str, CheckpointTensor]]] = {}
    for name, match in matches.items():
        layer = layers.setdefault(match["stack"], {})
        layer.setdefault(int(match["number"]), {})[match["part"]] = checkpoint.tensors[name]
    tensors: dict[str, CheckpointTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if name not in matches:
            tensors[name] = tensor
        elif (stack := matches[name]["stack"]) in layers:
            tensors.update(_stacks(stack, layers.pop(stack)))
    return replace(checkpoint, tensors=tensors)


def _stacks(stack: str, experts: Mapping[int, Mapping[str, CheckpointTensor]]) -> dict[str, CheckpointTensor]:
    parts = frozenset(part for tensors in experts.values() for part in tensors)
    missing = [
        f"{stack}.{number}.{part}.weight"
        for number in range(max(experts) + 1)
        for part in sorted(parts)
        if part not in experts.get(number, {})
    ]
    if missing or parts not in _PARTS:
        lacking = listed(missing) if missing else f"the matrices of whole experts, it has {listed(sorted(parts))}"
        raise UnmappedTensorsError(f"{stack} lacks {lacking}; the checkpoint is not complete")
    ordered = [experts[number] for number in range(len(experts))]
    return {
        f"{stack}.{name}": _stack(f"{stack}.{name}", [[tensors[part] for part in of] for tensors in ordered])
        for name, of in _PARTS[parts].items()
    }


def _stack(name: str, experts: Sequence[Sequence[CheckpointTensor]]) -> DerivedTensor:
    """Stack the matrices of each expert, and the experts; rows of all must be as wide and of one type."""
    first = experts[0][0]
    odd = [
        f"{tensor.name} is {list(tensor.shape)} {tensor.dtype}"
        for matrices in experts
        for tensor in matrices
        if len(tensor.shape) != 2 or tensor.shape != first.shape or tensor.dtype != first.dtype
    ]
    if odd or not 0 < first.shape[0] < MAX_SIZE:
        raise CheckpointError(f"experts of {name} differ: {listed(odd or [first.name])}, {first.name} is first")
    n_rows = first.shape[0]
    shape = (len(experts), n_rows * len(experts[0]), first.shape[1])
    parts = tuple((tensor.source, n_rows) for matrices in experts for tensor in matrices)
    return DerivedTensor(name, first.dtype, shape, StackedRows(parts))
