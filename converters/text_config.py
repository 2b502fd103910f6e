"""Hyper-parameters of a Gemma 4 text decoder, read from config.json in any form transformers has written.

Defaults for missing keys are those of transformers' Gemma4TextConfig and Gemma4UnifiedTextConfig; the GGUF that
llama.cpp's converter writes carries them too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma4_quant.converters.attention_config import (
    GLOBAL,
    LOCAL,
    MAX_SIZE,
    HeadSizes,
    Shapes,
    read_global_heads,
    read_layer_types,
)
from gemma4_quant.errors import shortened
from gemma4_quant.formats.json_input import Fields

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS (llama-hparams.h)."""

MAX_EXPERTS = 1024
"""LLAMA_MAX_EXPERTS (llama-hparams.h)."""


@dataclass(frozen=True)
class Defaults:
    """Where the configs of the family differ when a key is missing.

    shares_all_layers: every layer uses keys and values from elsewhere, unless the config says how many do.
    """

    context_length: int = 131_072
    window: int = 512
    per_layer_width: int = 256
    shares_all_layers: bool = False


@dataclass(frozen=True)
class TextConfig:
    """A text decoder's hyper-parameters.

    Widths are counts of values, head counts and head widths are given for local (sliding-window) and global layers.
    is_local: one flag a layer. n_kv_shared: how many of the last layers use the keys and values of earlier ones.
    n_experts and n_experts_used: as in the file, also when the model has no expert layers (is_moe).
    """

    n_layers: int
    context_length: int
    hidden: int
    feed_forward: int
    is_double_wide: bool
    n_heads: int
    n_kv_heads_local: int
    n_kv_heads_global: int
    head_width_local: int
    head_width_global: int
    is_local: tuple[bool, ...]
    window: int
    n_kv_shared: int
    has_k_as_v: bool
    is_causal: bool
    rope_base_local: float
    rope_base_global: float
    rotated_share: float
    norm_epsilon: float
    logit_softcap: float | None
    vocabulary: int
    per_layer_width: int
    per_layer_vocabulary: int
    is_moe: bool
    n_experts: int | None
    n_experts_used: int | None
    expert_feed_forward: int | None
    is_tied: bool

    @property
    def first_kv_shared(self) -> int:
        """Index of the first layer without keys and values of its own; n_layers when there is none."""
        return self.n_layers - self.n_kv_shared

    def head_width(self, layer: int) -> int:
        """Return the width of one attention head of `layer`."""
        return self.head_width_local if self.is_local[layer] else self.head_width_global

    def n_kv_heads(self, layer: int) -> int:
        """Return the number of key and value heads of `layer`."""
        return self.n_kv_heads_local if self.is_local[layer] else self.n_kv_heads_global

    def layer_feed_forward(self, layer: int) -> int:
        """Return the feed-forward width of `layer`: double in KV-shared layers of models that say so."""
        return self.feed_forward * (2 if self.is_double_wide and layer >= self.first_kv_shared else 1)


def text_fields(config: Mapping[str, Any]) -> Fields:
    """Return the text decoder's part of config.json: keys of `text_config` over those of the whole.

    Only whether embeddings are tied is for the whole to say (transformers, get_expanded_tied_weights_keys), and it
    ties them by default; what a text_config in it says counts where the whole unties them.
    """
    fields = Fields(config, "config.json")
    if "text_config" not in fields:
        return fields
    inner = fields.inner("text_config")
    merged = {**config, **inner.values}
    if config.get("tie_word_embeddings") is not False:
        merged["tie_word_embeddings"] = config.get("tie_word_embeddings")
    return Fields(merged, inner.source, "text_config.")


def read_text_config(fields: Fields, defaults: Defaults, shapes: Shapes | None = None) -> TextConfig:
    """Read the hyper-parameters; raises ConfigError for a missing or impossible one, naming key and value.

    shapes: of the checkpoint's tensors, which tell what a config leaves out; see read_global_heads.
    """
    if fields.text("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        fields.fail(
            "hidden_activation",
            f"is {shortened(fields.text('hidden_activation'))!r}; llama.cpp knows gelu_pytorch_tanh",
        )
    n_layers = fields.integer("num_hidden_layers", 30, high=MAX_LAYERS)
    is_local = read_layer_types(fields, n_layers)
    has_k_as_v = fields.flag("attention_k_eq_v", False)
    local = HeadSizes(
        fields.integer("head_dim", 256, high=MAX_SIZE), fields.integer("num_key_value_heads", 4, high=MAX_SIZE)
    )
    wide = read_global_heads(fields, is_local, local, shapes or {}, has_k_as_v=has_k_as_v)
    rope_local, rope_global, rotated_share = _read_rope(fields)
    is_bidirectional = "use_bidirectional_attention" in fields and fields.text("use_bidirectional_attention") == "all"
    window = fields.integer("sliding_window", defaults.window, high=MAX_SIZE)
    is_moe = fields.flag("enable_moe_block", False)
    # the name before Gemma 4's release, which llama.cpp's converter knows too
    expert_width = "expert_intermediate_size" if "expert_intermediate_size" in fields else "moe_intermediate_size"
    return TextConfig(
        n_layers=n_layers,
        context_length=fields.integer("max_position_embeddings", defaults.context_length),
        hidden=fields.integer("hidden_size", 2304, high=MAX_SIZE),
        feed_forward=fields.integer("intermediate_size", 9216, high=MAX_SIZE),
        is_double_wide=fields.flag("use_double_wide_mlp", False),
        n_heads=fields.integer("num_attention_heads", 8, high=MAX_SIZE),
        n_kv_heads_local=local.n_kv,
        n_kv_heads_global=wide.n_kv,
        head_width_local=local.width,
        head_width_global=wide.width,
        is_local=is_local,
        # transformers halves the window of bidirectional models and doubles it again when it writes the config
        window=window // 2 * 2 if is_bidirectional else window,
        n_kv_shared=_read_shared_layers(fields, n_layers, defaults),
        has_k_as_v=has_k_as_v,
        is_causal=fields.flag("is_causal", True) and not is_bidirectional,
        rope_base_local=rope_local,
        rope_base_global=rope_global,
        rotated_share=rotated_share,
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        logit_softcap=fields.number("final_logit_softcapping") if "final_logit_softcapping" in fields else None,
        vocabulary=fields.integer("vocab_size", 262_144, high=MAX_SIZE),
        per_layer_width=_read_per_layer_width(fields, defaults),
        per_layer_vocabulary=fields.integer("vocab_size_per_layer_input", 262_144, low=0, high=MAX_SIZE),
        is_moe=is_moe,
        n_experts=_expert_integer(fields, "num_experts", is_moe, MAX_EXPERTS),
        n_experts_used=_expert_integer(fields, "top_k_experts", is_moe, MAX_EXPERTS),
        expert_feed_forward=_expert_integer(fields, expert_width, is_moe, MAX_SIZE),
        is_tied=fields.flag("tie_word_embeddings", True),
    )


def _expert_integer(fields: Fields, key: str, is_needed: bool, high: int) -> int | None:
    return fields.integer(key, high=high) if is_needed else fields.optional_integer(key, high=high)


def _read_shared_layers(fields: Fields, n_layers: int, defaults: Defaults) -> int:
    n_shared = fields.integer("num_kv_shared_layers", 0, low=0, high=n_layers)
    return n_layers if defaults.shares_all_layers and n_shared == 0 else n_shared


def _read_per_layer_width(fields: Fields, defaults: Defaults) -> int:
    key = "hidden_size_per_layer_input"
    if key in fields.values and fields.values[key] is None:
        return 0
    return fields.integer(key, defaults.per_layer_width, low=0, high=MAX_SIZE)


def _read_rope(fields: Fields) -> tuple[float, float, float]:
    """Return the RoPE bases of local and global layers and the share of a global head that rotates."""
    if "rope_parameters" not in fields:
        return 10_000.0, 1_000_000.0, 0.25
    rope = fields.inner("rope_parameters")
    local, whole = rope.inner(LOCAL), rope.inner(GLOBAL)
    for part, kind in ((local, "default"), (whole, "proportional")):
        if part.text("rope_type", "default") != kind:
            found = shortened(part.text("rope_type", "default"))
            part.fail("rope_type", f"is {found!r}; llama.cpp's gemma4 has {kind!r} here")
        if part.number("factor", 1.0) != 1.0:
            part.fail("factor", "stretches positions, which llama.cpp's gemma4 does not")
    if local.number("partial_rotary_factor", 1.0) != 1.0:
        local.fail("partial_rotary_factor", "is not 1; llama.cpp's gemma4 rotates whole local heads")
    share = whole.number("partial_rotary_factor", 1.0)
    if share > 1:
        whole.fail("partial_rotary_factor", f"is {share}, more than a whole head")
    return local.number("rope_theta"), whole.number("rope_theta"), share
