"""Attention of a Gemma 4 text decoder as config.json gives it: which layers are local, how wide the others are."""

from collections.abc import Mapping
from dataclasses import dataclass

from gemma4_quant.errors import ConfigError, shortened
from gemma4_quant.formats.json_input import Fields

LOCAL = "sliding_attention"
GLOBAL = "full_attention"

MAX_SIZE = 2**24
"""Keeps every product of two sizes far from overflow."""

_HEAD_WIDTH, _KV_HEADS = "head_dim", "num_key_value_heads"

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a checkpoint's tensors by name without prefix; empty when there is only a config."""


@dataclass(frozen=True)
class HeadSizes:
    """Width of one attention head, and number of key and value heads."""

    width: int
    n_kv: int


def read_layer_types(fields: Fields, n_layers: int) -> tuple[bool, ...]:
    """Tell for each layer whether it is local; the last one is always global, as transformers makes it."""
    if "layer_types" not in fields:
        return (*((layer + 1) % 6 != 0 for layer in range(n_layers - 1)), False)
    kinds = fields.sequence("layer_types")
    if len(kinds) != n_layers:
        fields.fail("layer_types", f"has {len(kinds)} entries for {n_layers} layers")
    wrong = sorted({str(kind)[:40] for kind in kinds if kind not in (LOCAL, GLOBAL)})
    if wrong:
        fields.fail("layer_types", f"holds {', '.join(wrong[:8])}; known are {LOCAL} and {GLOBAL}")
    return (*(kind == LOCAL for kind in kinds[:-1]), False)


def read_global_heads(
    fields: Fields, is_local: tuple[bool, ...], local: HeadSizes, shapes: Shapes, *, has_k_as_v: bool
) -> HeadSizes:
    """Return the sizes of global layers.

    New configs have per_layer_config, old ones global_head_dim and num_global_key_value_heads (the latter counts only
    with K = V). What neither says is taken from the checkpoint's tensors, else as transformers takes it: a missing
    global_head_dim means 512, a null one the local width.
    """
    if "per_layer_config" in fields:
        return _read_per_layer_config(fields.inner("per_layer_config"), is_local, local)
    stored = _stored_heads(is_local, shapes)
    is_null = "global_head_dim" in fields.values and fields.values["global_head_dim"] is None
    unsaid = local.width if is_null else 512
    width = fields.integer("global_head_dim", unsaid if stored is None else stored.width, high=MAX_SIZE)
    if not has_k_as_v:
        return HeadSizes(width, local.n_kv)
    n_kv = fields.integer("num_global_key_value_heads", local.n_kv if stored is None else stored.n_kv, high=MAX_SIZE)
    return HeadSizes(width, n_kv)


def _stored_heads(is_local: tuple[bool, ...], shapes: Shapes) -> HeadSizes | None:
    """Return the sizes that the first global layer's norm and key projection have; None when it has none."""
    layer = f"layers.{is_local.index(False)}.self_attn"
    norm, keys = shapes.get(f"{layer}.q_norm.weight", ()), shapes.get(f"{layer}.k_proj.weight", ())
    if len(norm) != 1 or len(keys) != 2 or not norm[0] or not keys[0] or keys[0] % norm[0]:
        return None
    return HeadSizes(norm[0], keys[0] // norm[0])


def _read_per_layer_config(layers: Fields, is_local: tuple[bool, ...], local: HeadSizes) -> HeadSizes:
    sizes = {}
    for key in layers.values:
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < len(is_local)):
            layers.fail(shortened(key), f"is not the number of one of {len(is_local)} layers")
        sizes[int(key)] = _read_layer(layers.inner(key), local)
    if any(is_local[layer] and found != local for layer, found in sizes.items()):
        raise ConfigError(f"{layers.source}: {layers.path} changes local layers; llama.cpp allows it for global ones")
    different = {sizes.get(layer, local) for layer, is_one in enumerate(is_local) if not is_one}
    if len(different) > 1:
        raise ConfigError(f"{layers.source}: {layers.path} gives global layers different sizes; llama.cpp needs one")
    return different.pop()


def _read_layer(layer: Fields, local: HeadSizes) -> HeadSizes:
    unknown = sorted(name for name in layer.values if name not in (_HEAD_WIDTH, _KV_HEADS) and layer.values[name])
    if unknown:
        layer.fail(shortened(unknown[0]), "is set for one layer; llama.cpp has no place for that in a gemma4 GGUF")
    return HeadSizes(
        layer.integer(_HEAD_WIDTH, local.width, high=MAX_SIZE), layer.integer(_KV_HEADS, local.n_kv, high=MAX_SIZE)
    )
