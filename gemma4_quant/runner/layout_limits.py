"""Layouts of layers, heads and experts that llama.cpp asserts against, and numbers from which it computes none.

Sources: llama_model::load_hparams and create_memory (llama-model.cpp), llama_kv_cache (llama-kv-cache.cpp),
ggml_can_mul_mat (ggml.c). What it throws and reports as an error is left to it.
"""

import math
from collections.abc import Sequence

from gemma4_quant.errors import GgufError, listed
from gemma4_quant.ggml import GgmlType
from gemma4_quant.metadata import Metadata, ValueType, get_int, get_string
from gemma4_quant.model import Model

_MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS (llama-hparams.h)
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")  # LLAMA_ROPE_SCALING_TYPES (llama-model.cpp)
_LEAST = {
    "rope.freq_base": 1e-30,
    "rope.freq_base_swa": 1e-30,
    "rope.scaling.factor": 0.0,
    "final_logit_softcapping": 0.0,
}
"""Least values of settings that must be finite for logits to be numbers; powers of a smaller base overflow."""

_NO_WEIGHTS = (GgmlType.I8, GgmlType.I16, GgmlType.I32, GgmlType.I64, GgmlType.F64)
_INTEGERS = (ValueType.BOOL, ValueType.UINT32, ValueType.INT32)


def refuse_impossible_layouts(model: Model, prefix: str, n_layers: int) -> None:
    """Raise GgufError for a layout that llama.cpp aborts on; prefix: the architecture; n_layers: its block count."""
    metadata = model.metadata
    _check_attention_pattern(metadata, prefix, n_layers)
    _check_heads(metadata, prefix, n_layers)
    _check_experts(metadata, prefix, n_layers)
    _check_rope_settings(metadata, prefix)
    n_drafted = get_int(metadata, f"{prefix}.nextn_predict_layers", 0)
    if n_drafted > n_layers:
        raise GgufError(f"{prefix}.nextn_predict_layers is {n_drafted}, more than {n_layers} layers")
    _check_types(model)


def _check_types(model: Model) -> None:
    """The CPU multiplies no matrices of integers, and by no vectors but of float32 (ggml-cpu/binary-ops.cpp)."""
    odd = [
        tensor.name
        for tensor in model.tensors
        if tensor.type in _NO_WEIGHTS or (len(tensor.shape) == 1 and tensor.type is not GgmlType.F32)
    ]
    if odd:
        raise GgufError(f"{len(odd)} tensors have a type that llama.cpp does not compute with: {listed(odd, 3)}")


def _check_attention_pattern(metadata: Metadata, prefix: str, n_layers: int) -> None:
    key = f"{prefix}.attention.sliding_window_pattern"
    pattern = metadata.get(key)
    if pattern is None or pattern.item not in _INTEGERS or pattern.count > n_layers:
        return
    is_local = [bool(flag) for flag in pattern.array()] + [False] * (n_layers - pattern.count)
    if not any(is_local):
        raise GgufError(f"{key} has no layer with a sliding window; llama.cpp needs one")
    if prefix != "gemma4":
        return
    first_shared = n_layers - get_int(metadata, f"{prefix}.attention.shared_kv_layers", 0)
    for layer in range(max(0, first_shared), n_layers):
        source = first_shared - (2 if is_local[layer] else 1)
        if is_local[source] is not is_local[layer]:
            raise GgufError(
                f"{key}: layer {layer} takes the keys and values of layer {source}, whose attention is another"
            )


def _check_heads(metadata: Metadata, prefix: str, n_layers: int) -> None:
    key = f"{prefix}.attention.head_count"
    heads = _for_each_layer(metadata, key, n_layers)
    kv_heads = _for_each_layer(metadata, f"{key}_kv", n_layers) or heads
    for layer, (n_heads, n_kv_heads) in enumerate(zip(heads, kv_heads, strict=False)):
        if n_heads < 1 or n_kv_heads < 1 or n_heads % n_kv_heads:
            raise GgufError(
                f"{key} is {n_heads} and {key}_kv {n_kv_heads} in layer {layer}; heads must be whole groups for each "
                "key-value head"
            )


def _check_experts(metadata: Metadata, prefix: str, n_layers: int) -> None:
    n_experts = get_int(metadata, f"{prefix}.expert_count", 0)
    n_used = max(_for_each_layer(metadata, f"{prefix}.expert_used_count", n_layers), default=0)
    n_groups = get_int(metadata, f"{prefix}.expert_group_count", 0)
    n_groups_used = get_int(metadata, f"{prefix}.expert_group_used_count", 0)
    if n_experts > _MAX_EXPERTS or n_used > n_experts or (n_experts > 0 and n_used < 1):
        raise GgufError(
            f"{prefix}.expert_count is {n_experts} and {prefix}.expert_used_count {n_used}; "
            f"of at most {_MAX_EXPERTS} experts, one to all must be used"
        )
    is_grouped = n_groups > 1
    if (n_groups >= n_experts and n_groups > 0) or (
        is_grouped and (n_experts % n_groups or not 0 < n_groups_used < n_groups)
    ):
        raise GgufError(f"{prefix}.expert_group_count is {n_groups} for {n_experts} experts")


def _check_rope_settings(metadata: Metadata, prefix: str) -> None:
    scaling = get_string(metadata, f"{prefix}.rope.scaling.type", "linear")
    if scaling not in _ROPE_SCALINGS:
        raise GgufError(f"{prefix}.rope.scaling.type is {scaling[:40]!r}; known are {', '.join(_ROPE_SCALINGS)}")
    for key, low in _LEAST.items():
        value = metadata.get(f"{prefix}.{key}")
        number = None if value is None else value.decode()
        if isinstance(number, float) and not (math.isfinite(number) and number >= low):
            raise GgufError(f"{prefix}.{key} is {number}, with which no logit is a number")


def _for_each_layer(metadata: Metadata, key: str, n_layers: int) -> Sequence[int]:
    """Return a number for each layer; none when there is none, or what llama.cpp itself reports as an error."""
    value = metadata.get(key)
    if value is None:
        return ()
    if value.item is None:
        return [get_int(metadata, key)] * n_layers
    if value.item not in _INTEGERS or value.count != n_layers:
        return ()
    return [int(number) for number in value.array()]
