"""Adapters as files of their own, which llama.cpp applies to a model while it runs (llama-adapter.cpp).

Names, shapes and metadata are those of llama.cpp's convert_lora_to_gguf.py. It knows one scale for a whole adapter,
and llama.cpp divides by each module's rank; where that gives another factor than training had (rank-stabilized
adapters, alphas of single modules) the difference goes into lora_b, here. llama.cpp also adds what an adapter makes
of an expert after it has scaled the expert's output (llama-graph.cpp, build_lora_mm_id), so those scales of the base,
`router.per_expert_scale`, go into lora_b too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_quant.arrays import ByteRows
from gemma4_quant.converters.authorship import general_metadata
from gemma4_quant.converters.decoders import Decoder, read_decoder
from gemma4_quant.converters.lora.changes import float32_rows, scaled
from gemma4_quant.converters.lora.peft_adapter import STACKS, TOWERS, Adapter, Factors, open_adapter
from gemma4_quant.converters.places import FLOAT_TYPES, Place, bare_name
from gemma4_quant.errors import CheckpointError, UnmappedTensorsError, listed
from gemma4_quant.formats.checkpoint import Checkpoint, CheckpointTensor, find_checkpoint_file, open_checkpoint
from gemma4_quant.formats.json_input import read_json_object
from gemma4_quant.formats.safetensors_header import StoredTensor
from gemma4_quant.ggml import GgmlType
from gemma4_quant.metadata import Value, ValueType, float32, numbers, string, uint32
from gemma4_quant.model import DataFile, Model, RowSource, Tensor

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION (ggml.h)."""


# Read by llama.cpp without a look at adapters (models/gemma4.cpp, models/gemma4-assistant.cpp).
_NOT_ADAPTED = ("per_layer_model_proj.weight", "nextn.pre_projection.weight", "nextn.post_projection.weight")


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as llama.cpp takes it. remarks: what of it llama.cpp leaves out when it runs."""

    model: Model
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class ScaledRows:
    """Rows of a factor times a number, float32. See RowSource."""

    stored: StoredTensor
    factor: float

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop; see RowSource."""
        rows = float32_rows(self.stored.source.read_rows(start, stop), self.stored.dtype)
        return scaled(rows, self.factor).view(np.uint8)

    @property
    def identity(self) -> bytes:
        """Return what identifies the rows and the number; see RowSource."""
        return self.stored.source.identity + f" × {self.factor!r}".encode()

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the one file; see RowSource."""
        return (self.stored.file,)


@dataclass(frozen=True)
class ExpertRows:
    """lora_b of stacked experts, one expert after the other; PEFT has the expert as its last index. See RowSource.

    stored: (n_out, rank · n_experts). Rows are (n_experts · n_out, rank) float32, times the factor of each expert.
    """

    stored: StoredTensor
    factors: tuple[float, ...]

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop; see RowSource."""
        n_out = self.stored.shape[0]
        parts = []
        while start < stop:
            expert, first = divmod(start, n_out)
            last = min(n_out, first + stop - start)
            rows = float32_rows(self.stored.source.read_rows(first, last), self.stored.dtype)
            parts.append(scaled(rows[:, expert :: len(self.factors)], self.factors[expert]))
            start += last - first
        return np.ascontiguousarray(np.concatenate(parts), "<f4").view(np.uint8)

    @property
    def identity(self) -> bytes:
        """Return what identifies the rows, their order and the numbers; see RowSource."""
        return self.stored.source.identity + f" experts × {self.factors!r}".encode()

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the one file; see RowSource."""
        return (self.stored.file,)


def open_adapter_file(directory: Path, base: Path, *, model_name: str | None = None) -> AdapterFile:
    """Give the factors of the adapter in `directory` their GGUF names; no weight of it is read.

    base: the checkpoint it was trained on, of which config.json is read, and the scales of experts whose outputs the
    adapter changes. model_name: `general.name`, guessed from the adapter's model
    card and directory when None. Raises UnmappedTensorsError listing modules that such a model does not have,
    CheckpointError for sizes that differ and for changes that llama.cpp cannot make while a model runs.
    """
    adapter = open_adapter(directory)
    decoder = read_decoder(_read_config(base))
    _refuse_whole_tensors(adapter)
    tensors = list(_tensors(adapter, decoder, base))
    general = general_metadata(Checkpoint(directory, {}, {}), tensors, model_name, decoder.architecture, "adapter")
    # convert_lora_to_gguf.py writes the kind of adapter right after the kind of file
    head = {key: general.pop(key) for key in ("general.architecture", "general.type")}
    metadata = {**head, "adapter.type": string("lora"), **general, **_settings_metadata(adapter)}
    return AdapterFile(Model(directory, metadata, tensors), tuple(_remarks(tensors)))


def _refuse_whole_tensors(adapter: Adapter) -> None:
    if adapter.whole:
        raise CheckpointError(
            f"{adapter.directory} replaces {len(adapter.whole)} tensors ({listed(adapter.whole)}), which llama.cpp "
            "cannot do while a model runs; merge it with --adapter"
        )


def _settings_metadata(adapter: Adapter) -> dict[str, Value]:
    tokens = adapter.settings.invocation_tokens
    return {
        "adapter.lora.alpha": float32(adapter.settings.alpha),
        **({"adapter.alora.invocation_tokens": numbers(ValueType.UINT32, tokens)} if tokens else {}),
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
    }


def _tensors(adapter: Adapter, decoder: Decoder, base: Path) -> Iterator[Tensor]:
    places = {place.name: place for place in decoder.places(decoder.config.vocabulary)}
    pairs, unknown, misfits = [], [], []
    for factors in sorted(adapter.factors, key=lambda each: min(each.a.offset, each.b.offset)):
        place = _place(factors, places)
        if place is None:
            unknown.append(factors.module)
        elif problem := _problem(factors, place, adapter, decoder):
            misfits.append(problem)
        else:
            pairs.append((factors, place))
    lost = [name for name in unknown if not TOWERS.search(name)]
    if lost:
        raise UnmappedTensorsError(
            f"{adapter.directory} changes {len(lost)} modules that the base model does not have: {listed(lost)}"
        )
    if misfits:
        raise CheckpointError(f"{adapter.directory} cannot become an adapter file: {listed(misfits)}")
    if not pairs:
        raise CheckpointError(f"{adapter.directory} changes no module of the text model")
    output_scales = _OutputScales(base)
    for factors, place in pairs:
        yield from _pair(factors, place, adapter, output_scales)


def _place(factors: Factors, places: Mapping[str, Place]) -> Place | None:
    module = bare_name(factors.module)
    if not module.endswith("experts"):
        return places.get(f"{module}.weight")
    stacks = [places[name] for stack in STACKS if (name := f"{module}.{stack}") in places]
    sizes = (factors.b.shape[0], factors.a.shape[1])
    return next((place for place in stacks if place.shape[1:] == sizes), stacks[0] if stacks else None)


def _problem(factors: Factors, place: Place, adapter: Adapter, decoder: Decoder) -> str | None:
    """Say why factors cannot go into an adapter file, None when they can."""
    if factors.is_embedding:  # llama.cpp aborts on a tied table, and never adapts that of per-layer embeddings
        return f"{factors.module} is an embedding, which llama.cpp cannot adapt; merge the adapter (--adapter)"
    if place.gguf == "output.weight" and decoder.config.is_tied:
        return f"{factors.module} is no tensor of its own in the base's GGUF; merge the adapter (--adapter)"
    n_experts = place.shape[0] if len(place.shape) == 3 else 1
    sizes = (factors.b.shape[0], factors.a.shape[1])
    if sizes != place.shape[-2:]:
        return (
            f"{factors.module} has factors {list(factors.b.shape)} and {list(factors.a.shape)}, "
            f"{place.name} is {list(place.shape)}"
        )
    rank = adapter.settings.rank_of(_key(factors, place))
    if factors.a.shape[0] != rank * n_experts:
        return (
            f"{factors.module} has {factors.a.shape[0]} rows in lora_A, "
            f"adapter_config.json makes it {rank * n_experts}"
        )
    return None


def _key(factors: Factors, place: Place) -> str:
    """Return the name by which adapter_config.json knows a module, or a parameter that is no module's weight."""
    return factors.module if len(place.shape) < 3 else f"{factors.module}.{place.name.rpartition('.')[2]}"


def _pair(factors: Factors, place: Place, adapter: Adapter, output_scales: "_OutputScales") -> Iterator[Tensor]:
    n_experts = place.shape[0] if len(place.shape) == 3 else 1
    rank, key = factors.a.shape[0] // n_experts, _key(factors, place)
    ratio = adapter.settings.scale_of(key) / (adapter.settings.alpha / rank)
    n_out, n_in = factors.b.shape[0], factors.a.shape[1]
    stack = (n_experts,) if len(place.shape) == 3 else ()
    kind_a, kind_b = (FLOAT_TYPES[side.dtype] for side in (factors.a, factors.b))
    rows: RowSource = factors.b.source
    if stack:
        scales = output_scales.of(place, n_experts)
        rows, kind_b = ExpertRows(factors.b, tuple(ratio * scale for scale in scales)), GgmlType.F32
    elif abs(ratio - 1) > 1e-9:
        rows, kind_b = ScaledRows(factors.b, ratio), GgmlType.F32
    yield Tensor(f"{place.gguf}.lora_a", (*stack, rank, n_in), kind_a, factors.a.source)
    yield Tensor(f"{place.gguf}.lora_b", (*stack, n_out, rank), kind_b, rows)


class _OutputScales:
    """The scales of the outputs of experts in a checkpoint, which is opened when they are needed."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._tensors: Mapping[str, CheckpointTensor] | None = None

    def of(self, place: Place, n_experts: int) -> list[float]:
        """Return n_experts numbers: 1 unless `place` is of the matrices whose outputs are scaled."""
        layer, _, stack = place.name.rpartition(".experts.")
        if stack != "down_proj":
            return [1.0] * n_experts
        if self._tensors is None:
            tensors = open_checkpoint(self._base).tensors
            self._tensors = {bare_name(name): tensor for name, tensor in tensors.items()}
        found = self._tensors.get(f"{layer}.router.per_expert_scale")
        if found is None or found.dtype not in FLOAT_TYPES or found.shape != (n_experts,):
            raise CheckpointError(f"{self._base} has no {layer}.router.per_expert_scale of {n_experts} numbers")
        return [float(scale) for scale in float32_rows(found.source.read_rows(0, 1), found.dtype)[0]]


def _read_config(base: Path) -> dict[str, Any]:
    path = find_checkpoint_file(base, "config.json") if base.is_dir() else None
    if path is None:
        raise CheckpointError(f"{base} has no config.json; give the checkpoint that the adapter was trained on")
    return read_json_object(path)


def _remarks(tensors: list[Tensor]) -> Iterator[str]:
    ignored = [name for tensor in tensors if (name := tensor.name.removesuffix(".lora_a")) in _NOT_ADAPTED]
    if ignored:
        yield (
            f"llama.cpp computes {listed(ignored)} without adapters, so this part of the adapter has no effect; "
            "merge it with --adapter to keep it"
        )
