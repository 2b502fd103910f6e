"""Whether models fit the memory, estimated from their files before anything is loaded."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gemma4_quant.errors import GgufError, RunError
from gemma4_quant.ggml import GgmlType, row_bytes
from gemma4_quant.measuring.decoding import LOGITS_BYTES
from gemma4_quant.metadata import Metadata, get_int, get_string
from gemma4_quant.model import Model
from gemma4_quant.runner.devices import devices
from gemma4_quant.runner.session import MICRO_BATCH_TOKENS

_MEMINFO = Path("/proc/meminfo")
_GROUP_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
_CELLS = 256  # llama.cpp rounds the length of a cache up to this (llama-kv-cache.cpp, get_padding and GGML_PAD)
_OVERHEAD = 200 << 20
"""Vocabulary, buffers of a graph and what Python holds, rounded up; measured with Gemma's vocabulary."""


def refuse_too_big(models: Sequence[Model], n_bytes: int) -> None:
    """Raise RunError when models need more memory than there is; n_bytes: what they need together."""
    free = free_bytes()
    if free is not None and n_bytes > free:
        names = ", ".join(model.path.name for model in models)
        raise RunError(
            f"{names} would need about {n_bytes / (1 << 30):.1f} GiB of memory, and {free / (1 << 30):.1f} GiB are "
            "free; close other programs, use a shorter context (-c) or a smaller file, or add --force to try"
        )


def run_bytes(
    model: Model,
    n_ctx: int,
    n_sequences: int = 1,
    key_type: GgmlType = GgmlType.F16,
    value_type: GgmlType = GgmlType.F16,
) -> int:
    """Return about how many bytes a model takes while it runs, without logits."""
    weights = sum(tensor.n_bytes for tensor in model.tensors)
    return weights + cache_bytes(model.metadata, n_ctx, n_sequences, key_type, value_type) + _OVERHEAD


def logits_bytes() -> int:
    """Return the most that the logits of all sessions take together."""
    return LOGITS_BYTES


def cache_bytes(
    metadata: Metadata,
    n_ctx: int,
    n_sequences: int = 1,
    key_type: GgmlType = GgmlType.F16,
    value_type: GgmlType = GgmlType.F16,
) -> int:
    """Return the bytes of the KV cache that llama.cpp allocates.

    Layers with a window hold its positions and those of a micro-batch (llama-kv-cache-iswa.cpp); layers that share
    another's keys hold none. Raises GgufError when the metadata does not say its shape.
    """
    prefix = get_string(metadata, "general.architecture")
    n_layers = get_int(metadata, f"{prefix}.block_count")
    n_shared = get_int(metadata, f"{prefix}.attention.shared_kv_layers", 0)
    window = get_int(metadata, f"{prefix}.attention.sliding_window", 0)
    is_local = _per_layer(metadata, f"{prefix}.attention.sliding_window_pattern", n_layers, 0)
    n_heads = _per_layer(metadata, f"{prefix}.attention.head_count_kv", n_layers, 1)
    total = 0
    for layer in range(max(0, n_layers - n_shared)):
        local = bool(is_local[layer]) and window > 0
        suffix = "_swa" if local else ""
        lengths = [
            get_int(
                metadata,
                f"{prefix}.attention.{name}_length{suffix}",
                get_int(metadata, f"{prefix}.attention.{name}_length", 0),
            )
            for name in ("key", "value")
        ]
        cells = _padded(n_ctx)
        if local:
            cells = min(cells, _padded(window + MICRO_BATCH_TOKENS))
        for length, kind in zip(lengths, (key_type, value_type), strict=True):
            total += n_sequences * cells * row_bytes(kind, n_heads[layer] * length)
    return total


def _padded(n: int) -> int:
    return -(-n // _CELLS) * _CELLS


def _per_layer(metadata: Metadata, key: str, n_layers: int, default: int) -> list[int]:
    """Return a number of each layer from an array that has them, or from one number for all."""
    value = metadata.get(key)
    if value is None:
        return [default] * n_layers
    found = value.decode()
    numbers = [int(number) for number in found] if isinstance(found, list) else [int(found)] * n_layers
    if len(numbers) < n_layers:
        raise GgufError(f"{key} has {len(numbers)} entries for {n_layers} layers")
    return numbers


def free_bytes() -> int | None:
    """Return how much memory a program may still take; None where that cannot be found out.

    What other files have cached counts as free, for it is given back.
    """
    found = [free for free in (_system_bytes(), _group_bytes()) if free is not None]
    return min(found) if found else None


def _system_bytes() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    if sys.platform == "darwin":
        # What is free at the moment says little there; most of what is used can be given back.
        return next((device.total_bytes for device in devices() if device.is_cpu and device.total_bytes), None)
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _group_bytes() -> int | None:
    """Return what a container leaves, as control groups say it."""
    for limit, used in _GROUP_LIMITS:
        try:
            return int(limit.read_text()) - int(used.read_text())
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return None
