"""Merging adapters into a checkpoint while its rows are read: base + scale · B · A in float32, rounded once later."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gemma4_quant.arrays import ByteRows
from gemma4_quant.converters.lora.changes import (
    Change,
    EmbeddingChange,
    ExpertChange,
    LinearChange,
    float32_rows,
    is_zero,
)
from gemma4_quant.converters.lora.peft_adapter import STACKS, TOWERS, Adapter, Factors, open_adapter
from gemma4_quant.converters.lora.settings import Settings
from gemma4_quant.converters.places import FLOAT_TYPES, bare_name
from gemma4_quant.errors import CheckpointError, UnmappedTensorsError, listed
from gemma4_quant.formats.checkpoint import Checkpoint, CheckpointTensor, DerivedTensor
from gemma4_quant.model import DataFile, RowSource

logger = logging.getLogger(__name__)

EMBEDDING, OUTPUT = "embed_tokens.weight", "lm_head.weight"


# transformers renames modules of unified models as it loads them (conversion_mapping.py, "gemma4_unified")
_LOADED_AS = {
    "embed_vision.multimodal_embedder.embedding_projection": "embed_vision.embedding_projection",
    "embed_vision.patch_dense": "vision_embedder.patch_dense",
}


@dataclass(frozen=True)
class MergedRows:
    """Rows of a checkpoint tensor with what an adapter adds; float32. dtype: of the base. See RowSource."""

    base: RowSource
    dtype: str
    change: Change

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop, added in float32; see RowSource."""
        rows = float32_rows(self.base.read_rows(start, stop), self.dtype)
        self.change.add_to(rows, start)
        return rows.view(np.uint8)

    @property
    def identity(self) -> bytes:
        """Return what identifies base and change; see RowSource."""
        return b"merged " + self.base.identity + self.change.identity

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the files of base and change; see RowSource."""
        return (*self.base.files, *self.change.files)


def merge_adapters(checkpoint: Checkpoint, directories: Sequence[Path]) -> Checkpoint:
    """Return the checkpoint with the adapters in `directories` applied, one after the other; reads no weights of it.

    A model whose output matrix is its token embedding gets one of its own where the adapter trained only one of the
    two. Raises CheckpointError when an adapter does not fit, UnmappedTensorsError listing modules that the
    checkpoint does not have.
    """
    for directory in directories:
        checkpoint = replace(checkpoint, tensors=_merged(checkpoint.tensors, open_adapter(directory)))
    return checkpoint


def _merged(tensors: Mapping[str, CheckpointTensor], adapter: Adapter) -> dict[str, CheckpointTensor]:
    if adapter.settings.invocation_tokens:
        raise CheckpointError(
            f"{adapter.directory} works only after its invocation tokens (activated LoRA), for which a merged model "
            "cannot wait; write it as a file of its own with --as-adapter"
        )
    table = _Table(tensors)
    _untie(table, adapter)
    unknown, misfits = [], []
    for name, stored in adapter.whole.items():
        base = table.find(name)
        if base is None:
            unknown.append(name)
        elif base.shape != stored.shape:
            misfits.append(f"{name} is {list(stored.shape)}, in the checkpoint {list(base.shape)}")
        else:
            table.put(replace(stored, name=base.name))
    for factors in adapter.factors:
        fit = _fit(factors, adapter.settings, table)
        if fit is None and is_zero(factors.b):
            logger.warning("the adapter does not change %s, which the checkpoint does not have", factors.module)
        elif fit is None:
            unknown.append(factors.module)
        elif fit.problem or fit.change is None:
            misfits.append(fit.problem)
        else:
            rows = MergedRows(fit.base.source, fit.base.dtype, fit.change)
            table.put(DerivedTensor(fit.base.name, "F32", fit.base.shape, rows))
    _refuse(adapter, unknown, misfits)
    return table.tensors


class _Table:
    """The tensors of a checkpoint, found by names without prefixes, which the adapter may have others of."""

    def __init__(self, tensors: Mapping[str, CheckpointTensor]) -> None:
        self.tensors = dict(tensors)
        self._names = {bare_name(name): name for name in tensors}

    def find(self, name: str) -> CheckpointTensor | None:
        """Return the tensor of `name`, whatever its prefix."""
        return self.tensors.get(self._names.get(bare_name(name), ""))

    def put(self, tensor: CheckpointTensor) -> None:
        """Add a tensor, or replace the one of the same name."""
        self.tensors[tensor.name] = tensor
        self._names.setdefault(bare_name(tensor.name), tensor.name)


def _untie(table: _Table, adapter: Adapter) -> None:
    """Give the model an output matrix, a copy of its embedding, if the adapter trained one of the two alone."""
    embedding = table.find(EMBEDDING)
    if embedding is None or table.find(OUTPUT) is not None:
        return
    trained = {bare_name(name) for name in adapter.whole}
    trained |= {bare_name(factors.module) + ".weight" for factors in adapter.factors}
    if OUTPUT in trained or (EMBEDDING in trained and not adapter.settings.is_tied):
        logger.info(
            "the adapter trains %s alone; the model gets an output matrix of its own",
            listed(trained & {EMBEDDING, OUTPUT}),
        )
        table.put(DerivedTensor(OUTPUT, embedding.dtype, embedding.shape, embedding.source))


@dataclass(frozen=True)
class _Fit:
    """A tensor that factors belong to. problem: why they do not fit it, empty when they do."""

    base: CheckpointTensor
    change: Change | None
    problem: str = ""


def _fit(factors: Factors, settings: Settings, table: _Table) -> _Fit | None:
    """Find the tensor that factors change; None when the checkpoint does not have it."""
    module = bare_name(factors.module)
    if module.endswith("experts"):
        return _expert_fit(factors, settings, table)
    base = table.find(f"{_LOADED_AS.get(module, module)}.weight")
    if base is None:
        return None
    rows, columns = factors.b.shape[0], factors.a.shape[1]
    shape, rank, scale = (rows, columns), settings.rank_of(factors.module), settings.scale_of(factors.module)
    change: Change = LinearChange(factors.a, factors.b, scale)
    if factors.is_embedding:
        shape, change = (columns, rows), EmbeddingChange(factors.a, factors.b, scale)
    return _Fit(base, change, _problem(factors, base, shape, rank))


def _expert_fit(factors: Factors, settings: Settings, table: _Table) -> _Fit | None:
    """Tell by their sizes which stack of experts factors change, since PEFT does not save its name."""
    rows, columns = factors.b.shape[0], factors.a.shape[1]
    stacks = {name: base for name in STACKS if (base := table.find(f"{factors.module}.{name}")) is not None}
    for shape in ((rows, columns), (columns, rows)):
        for name, base in stacks.items():
            if base.shape[1:] == shape:
                key, n_experts = f"{factors.module}.{name}", base.shape[0]
                is_transposed = shape != (rows, columns)
                change = ExpertChange(factors.a, factors.b, settings.scale_of(key), n_experts, is_transposed)
                return _Fit(base, change, _problem(factors, base, base.shape, settings.rank_of(key) * n_experts))
    return next((_Fit(base, None, _problem(factors, base, (), 0)) for base in stacks.values()), None)


def _problem(factors: Factors, base: CheckpointTensor, shape: tuple[int, ...], rank: int) -> str:
    if base.dtype not in FLOAT_TYPES:
        return f"{base.name} is stored as {base.dtype}; start from the unquantized checkpoint"
    if base.shape != shape:
        return (
            f"{factors.module} has factors {list(factors.b.shape)} and {list(factors.a.shape)}, "
            f"{base.name} is {list(base.shape)}"
        )
    if factors.a.shape[0] != rank:
        return f"{factors.module} has {factors.a.shape[0]} rows in lora_A, adapter_config.json makes it {rank}"
    return ""


def _refuse(adapter: Adapter, unknown: Sequence[str], misfits: Sequence[str]) -> None:
    towers = [name for name in unknown if TOWERS.search(name)]
    if towers:
        logger.warning(
            "%d modules of pictures and sound are not in the checkpoint: %s", len(towers), listed(towers, 3)
        )
    lost = [name for name in unknown if name not in towers]
    if lost:
        raise UnmappedTensorsError(
            f"{adapter.directory} changes {len(lost)} modules that the checkpoint does not have: {listed(lost)}; "
            f"it was trained on {adapter.settings.base_model or 'another model'}"
        )
    if misfits:
        raise CheckpointError(
            f"{adapter.directory} does not fit the checkpoint: {listed(misfits)}; "
            f"it was trained on {adapter.settings.base_model or 'another model'}, perhaps with added tokens"
        )
