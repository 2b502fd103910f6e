"""Gemma 4 text decoders: where their tensors and hyper-parameters go in a GGUF of architecture `gemma4`.

One table serves the E family (per-layer embeddings, KV sharing), the dense models (K = V) and the mixtures of
experts; the config says which rows a model has. Names follow llama.cpp (llama-arch.cpp, LLM_ARCH_GEMMA4).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gemma4_quant.arrays import ByteRows
from gemma4_quant.converters.places import Drop, Place, Presence
from gemma4_quant.converters.text_config import TextConfig
from gemma4_quant.ggml import GgmlType
from gemma4_quant.metadata import Value, ValueType, boolean, float32, numbers, uint32
from gemma4_quant.model import ArrayRows, Tensor

ARCHITECTURE = "gemma4"

UNROTATED = 1e30
"""Frequency factor that stops the rotation of a pair of dims: ggml_rope divides the angle by it."""

DROPS = (
    Drop(re.compile(r"(?:^|[._])(?:vision|audio)[._]"), "vision and audio go into the projector file, not here"),
    Drop(re.compile(r"\.rotary_emb\.inv_freq$"), "llama.cpp computes the RoPE frequencies"),
)


@dataclass(frozen=True)
class Layer:
    """Sizes of one decoder layer, for the table's shapes."""

    hidden: int
    head_width: int
    queries: int
    keys: int
    feed_forward: int
    per_layer: int
    n_experts: int
    expert_feed_forward: int


Shape = Callable[[Layer], tuple[int, ...]]


def _hidden(layer: Layer) -> tuple[int, ...]:
    return (layer.hidden,)


def _head(layer: Layer) -> tuple[int, ...]:
    return (layer.head_width,)


ALWAYS: dict[str, tuple[str, Shape]] = {
    "input_layernorm.weight": ("attn_norm.weight", _hidden),
    "self_attn.q_proj.weight": ("attn_q.weight", lambda layer: (layer.queries, layer.hidden)),
    "self_attn.q_norm.weight": ("attn_q_norm.weight", _head),
    "self_attn.o_proj.weight": ("attn_output.weight", lambda layer: (layer.hidden, layer.queries)),
    "post_attention_layernorm.weight": ("post_attention_norm.weight", _hidden),
    "pre_feedforward_layernorm.weight": ("ffn_norm.weight", _hidden),
    "mlp.gate_proj.weight": ("ffn_gate.weight", lambda layer: (layer.feed_forward, layer.hidden)),
    "mlp.up_proj.weight": ("ffn_up.weight", lambda layer: (layer.feed_forward, layer.hidden)),
    "mlp.down_proj.weight": ("ffn_down.weight", lambda layer: (layer.hidden, layer.feed_forward)),
    "post_feedforward_layernorm.weight": ("post_ffw_norm.weight", _hidden),
}
"""Tensors of every layer: name after `layers.N.` → name after `blk.N.` and shape."""

OPTIONAL: dict[str, tuple[str, Shape]] = {"layer_scalar": ("layer_output_scale.weight", lambda _: (1,))}

OWN_KEYS: dict[str, tuple[str, Shape]] = {
    "self_attn.k_proj.weight": ("attn_k.weight", lambda layer: (layer.keys, layer.hidden)),
    "self_attn.k_norm.weight": ("attn_k_norm.weight", _head),
}
"""Needed by layers with keys and values of their own; older checkpoints also have them, unused, in KV-shared ones."""

OWN_VALUES: dict[str, tuple[str, Shape]] = {
    "self_attn.v_proj.weight": ("attn_v.weight", lambda layer: (layer.keys, layer.hidden)),
}
"""As OWN_KEYS, but for global layers of models with K = V."""

PER_LAYER_EMBEDDING: dict[str, tuple[str, Shape]] = {
    "per_layer_input_gate.weight": ("inp_gate.weight", lambda layer: (layer.per_layer, layer.hidden)),
    "per_layer_projection.weight": ("proj.weight", lambda layer: (layer.hidden, layer.per_layer)),
    "post_per_layer_input_norm.weight": ("post_norm.weight", _hidden),
}

EXPERTS: dict[str, tuple[str, Shape]] = {
    "router.proj.weight": ("ffn_gate_inp.weight", lambda layer: (layer.n_experts, layer.hidden)),
    "router.scale": ("ffn_gate_inp.scale", _hidden),
    "router.per_expert_scale": ("ffn_down_exps.scale", lambda layer: (layer.n_experts,)),
    "experts.gate_up_proj": (
        "ffn_gate_up_exps.weight",
        lambda layer: (layer.n_experts, 2 * layer.expert_feed_forward, layer.hidden),
    ),
    "experts.down_proj": (
        "ffn_down_exps.weight",
        lambda layer: (layer.n_experts, layer.hidden, layer.expert_feed_forward),
    ),
    "post_feedforward_layernorm_1.weight": ("post_ffw_norm_1.weight", _hidden),
    "pre_feedforward_layernorm_2.weight": ("pre_ffw_norm_2.weight", _hidden),
    "post_feedforward_layernorm_2.weight": ("post_ffw_norm_2.weight", _hidden),
}


def tensor_places(config: TextConfig, n_tokens: int) -> Iterator[Place]:
    """Yield the place of every tensor that a checkpoint of `config` has or may have.

    n_tokens: tokens of the tokenizer; embedding rows beyond have no text and are cut, since llama.cpp wants one
    row a token.
    """
    required, optional = Presence.REQUIRED, Presence.OPTIONAL
    embedding = (config.vocabulary, config.hidden)
    yield Place("embed_tokens.weight", "token_embd.weight", embedding, max_rows=n_tokens)
    yield Place("lm_head.weight", "output.weight", embedding, optional if config.is_tied else required, n_tokens)
    yield Place("norm.weight", "output_norm.weight", (config.hidden,))
    if config.per_layer_width:
        width = config.per_layer_width * config.n_layers
        table = (config.per_layer_vocabulary, width)
        yield Place("embed_tokens_per_layer.weight", "per_layer_token_embd.weight", table, max_rows=n_tokens)
        yield Place("per_layer_model_projection.weight", "per_layer_model_proj.weight", (width, config.hidden))
        yield Place("per_layer_projection_norm.weight", "per_layer_proj_norm.weight", (config.per_layer_width,))
    for number in range(config.n_layers):
        yield from _layer_places(config, number)


def _layer_places(config: TextConfig, number: int) -> Iterator[Place]:
    layer = layer_sizes(config, number)
    for group, presence in _layer_groups(config, number):
        for name, (gguf, shape) in group.items():
            yield Place(f"layers.{number}.{name}", f"blk.{number}.{gguf}", shape(layer), presence)


def _layer_groups(config: TextConfig, number: int) -> Iterator[tuple[dict[str, tuple[str, Shape]], Presence]]:
    own = Presence.REQUIRED if number < config.first_kv_shared else Presence.OPTIONAL
    yield ALWAYS, Presence.REQUIRED
    yield OPTIONAL, Presence.OPTIONAL
    yield OWN_KEYS, own
    if config.is_local[number] or not config.has_k_as_v:
        yield OWN_VALUES, own
    if config.per_layer_width:
        yield PER_LAYER_EMBEDDING, Presence.REQUIRED
    if config.is_moe:
        yield EXPERTS, Presence.REQUIRED


def layer_sizes(config: TextConfig, number: int) -> Layer:
    """Return the sizes of layer `number`."""
    head_width = config.head_width(number)
    return Layer(
        hidden=config.hidden,
        head_width=head_width,
        queries=config.n_heads * head_width,
        keys=config.n_kv_heads(number) * head_width,
        feed_forward=config.layer_feed_forward(number),
        per_layer=config.per_layer_width,
        n_experts=config.n_experts or 0,
        expert_feed_forward=config.expert_feed_forward or 0,
    )


def rope_frequencies(config: TextConfig) -> Tensor:
    """Return `rope_freqs.weight`, (global head width / 2,) float32: 1 for pairs of dims that rotate, else 1e30."""
    n_pairs = config.head_width_global // 2
    n_rotated = int(config.head_width_global * config.rotated_share / 2)

    def load() -> ByteRows:
        factors = np.full(n_pairs, UNROTATED, "<f4")
        factors[:n_rotated] = 1.0
        return factors.view(np.uint8).reshape(1, -1)

    return Tensor("rope_freqs.weight", (n_pairs,), GgmlType.F32, ArrayRows(load))


def hyper_parameters(config: TextConfig, file_type: Value, architecture: str) -> dict[str, Value]:
    """Return the metadata of the decoder in the order of llama.cpp's converter; `file_type` stands among it.

    architecture: the prefix of its keys.
    """
    values: dict[str, Value | None] = {
        "block_count": uint32(config.n_layers),
        "context_length": uint32(config.context_length),
        "embedding_length": uint32(config.hidden),
        "feed_forward_length": _feed_forward_length(config),
        "attention.head_count": uint32(config.n_heads),
        "attention.head_count_kv": _head_count_kv(config),
        "attention.causal": None if config.is_causal else boolean(False),
        "rope.freq_base": float32(config.rope_base_global),
        "rope.freq_base_swa": float32(config.rope_base_local),
        "attention.layer_norm_rms_epsilon": float32(config.norm_epsilon),
        "expert_count": _optional(config.n_experts),
        "expert_used_count": _optional(config.n_experts_used),
        "attention.key_length": uint32(config.head_width_global),
        "attention.value_length": uint32(config.head_width_global),
        "file_type": file_type,
        "final_logit_softcapping": None if config.logit_softcap is None else float32(config.logit_softcap),
        "attention.sliding_window": uint32(config.window),
        "attention.shared_kv_layers": uint32(config.n_kv_shared),
        "embedding_length_per_layer_input": uint32(config.per_layer_width),
        "attention.sliding_window_pattern": numbers(ValueType.BOOL, config.is_local),
        "attention.key_length_swa": uint32(config.head_width_local),
        "attention.value_length_swa": uint32(config.head_width_local),
        "expert_feed_forward_length": _optional(config.expert_feed_forward),
        "rope.dimension_count": uint32(config.head_width_global),
        "rope.dimension_count_swa": uint32(config.head_width_local),
    }
    return {
        "general.file_type" if key == "file_type" else f"{architecture}.{key}": value
        for key, value in values.items()
        if value is not None
    }


def _optional(number: int | None) -> Value | None:
    return None if number is None else uint32(number)


def _feed_forward_length(config: TextConfig) -> Value:
    if not config.is_double_wide:
        return uint32(config.feed_forward)
    return numbers(ValueType.INT32, [config.layer_feed_forward(layer) for layer in range(config.n_layers)])


def _head_count_kv(config: TextConfig) -> Value:
    if config.n_kv_heads_global == config.n_kv_heads_local:
        return uint32(config.n_kv_heads_local)
    return numbers(ValueType.INT32, [config.n_kv_heads(layer) for layer in range(config.n_layers)])
