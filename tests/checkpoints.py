"""Small random Gemma 4 checkpoints of each kind, written without torch and the same on every machine.

Weights come from the raw stream of PCG64 (which numpy guarantees) through exact arithmetic, so recorded facts of
llama.cpp's converter (golden/convert-KIND-*.json) stay comparable. Tokenizer and template are the example's.
"""

import json
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-gemma4-e"

KINDS = ("dense", "moe", "e", "unified")

DRAFTERS = ("assistant", "unified_assistant")
"""Kinds that draft for a target whose hidden states are 256 wide, as those of KINDS are."""

DIRECTORY_NAMES = {
    "dense": "gemma-4-tiny-dense",
    "moe": "Gemma-4-1M-A1M-it",
    "e": "tiny_e",
    "unified": "gemma-4-unified-it",
    "assistant": "gemma-4-tiny-it-assistant",
    "unified_assistant": "unified-drafter",
}
"""Names of the directories that the recorded facts were made in; llama.cpp guesses `general.name` from them."""

StoredData: TypeAlias = tuple[str, tuple[int, ...], bytes]
"""dtype, shape and bytes of a tensor in a safetensors file."""

LOCAL, GLOBAL = "sliding_attention", "full_attention"
ROPE = {
    GLOBAL: {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
    LOCAL: {"rope_theta": 10000.0, "rope_type": "default"},
}

_COMMON: dict[str, Any] = {
    "bos_token_id": 2,
    "dtype": "bfloat16",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 64,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 256,
    "intermediate_size": 512,
    "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL],
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "num_kv_shared_layers": 0,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "rope_parameters": ROPE,
    "sliding_window": 64,
    "tie_word_embeddings": True,
    "vocab_size": 2048,
}

_PER_LAYER = {layer: {"head_dim": 128, "num_key_value_heads": 1} for layer in ("2", "5")}

_DRAFTER_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "layer_types": [LOCAL, LOCAL, LOCAL, GLOBAL],
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 4,
}

_DRAFTER: dict[str, dict[str, Any]] = {
    "assistant": {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "model_type": "gemma4_assistant",
        "centroid_intermediate_top_k": 4,
        "num_centroids": 32,
        "use_ordered_embeddings": True,
    },
    "unified_assistant": {
        "architectures": ["Gemma4UnifiedAssistantForCausalLM"],
        "model_type": "gemma4_unified_assistant",
        "use_ordered_embeddings": False,
    },
}

# Each kind is written in another of the forms that configs have had.
_TEXT: dict[str, dict[str, Any]] = {
    "dense": {  # as 31B; new form: per_layer_config
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "model_type": "gemma4_text",
        "per_layer_config": _PER_LAYER,
    },
    "moe": {  # as 26B-A4B, 96 and 352 standing in for 704 and 2112; old form within a multimodal config
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "global_head_dim": 128,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 352,
        "model_type": "gemma4_text",
        "moe_intermediate_size": 96,
        "num_experts": 8,
        "num_global_key_value_heads": 1,
        "top_k_experts": 2,
    },
    "e": {  # as E2B; old form, with keys that are null
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "global_head_dim": 128,
        "hidden_size_per_layer_input": 64,
        "model_type": "gemma4_text",
        "moe_intermediate_size": None,
        "num_experts": None,
        "num_global_key_value_heads": None,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 3,
        "top_k_experts": None,
        "use_double_wide_mlp": True,
        "vocab_size_per_layer_input": 2048,
    },
    "unified": {  # as 12B; no key of experts or per-layer embeddings
        "attention_k_eq_v": True,
        "model_type": "gemma4_unified_text",
        "per_layer_config": _PER_LAYER,
    },
    "assistant": {  # of E2B; with centroids
        **_DRAFTER_SIZES,
        "enable_moe_block": False,
        "global_head_dim": 128,
        "hidden_size_per_layer_input": 0,
        "model_type": "gemma4_text",
        "num_key_value_heads": 1,
        "use_double_wide_mlp": False,
        "vocab_size_per_layer_input": 0,
    },
    "unified_assistant": {  # of 12B; without the keys that unified configs lack
        **_DRAFTER_SIZES,
        "attention_k_eq_v": True,
        "model_type": "gemma4_unified_text",
        "per_layer_config": {"3": {"head_dim": 128, "num_key_value_heads": 1}},
    },
}

_VISION: dict[str, Any] = {
    "head_dim": 16,
    "hidden_size": 32,
    "intermediate_size": 64,
    "model_type": "gemma4_vision",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "position_embedding_size": 16,
}

_PREFIXES = {"moe": "model.language_model.", "unified": "model.language_model."}  # elsewhere `model.`

_CARD = """---
license: apache-2.0
license_link: https://example.org/licence
tags:
- gemma
- test
pipeline_tag: image-text-to-text
language:
- no
base_model: example/gemma-4-1M-A1M
datasets:
- example/words
---
# A random mixture of experts
"""


def write_checkpoint(
    directory: Path,
    kind: str = "dense",
    seed: int = 0,
    *,
    changes: Mapping[str, Any] | None = None,
    n_shards: int = 1,
    dtype: str = "BF16",
) -> Path:
    """Write a checkpoint of `kind` (see KINDS and DRAFTERS) into `directory` and return it.

    changes: text hyper-parameters that differ from the kind's; None removes a key. dtype: BF16, F16 or F32, how
    weights are stored. Four to seven million weights, 8 to 14 MB in BF16; drafters are smaller.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = text_config(kind, changes)
    _write_json(directory / "config.json", config(kind, text))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(EXAMPLE / name, directory / name)
    if kind == "moe":
        (directory / "README.md").write_text(_CARD)
        _write_json(directory / "generation_config.json", {"temperature": 1.0, "top_k": 64, "top_p": 0.95})
    if kind == "unified":
        _write_json(directory / "generation_config.json", {"suppress_tokens": [17, 18, 21]})
    tensors = {
        name: (dtype, shape, random_weights(name, shape, seed, dtype)) for name, shape in tensor_shapes(kind, text)
    }
    if kind == "assistant":
        tensors["masked_embedding.token_ordering"] = (
            "I64",
            (text["vocab_size"],),
            _shuffled(text["vocab_size"], seed),
        )
    _write_shards(directory, tensors, n_shards)
    return directory


def text_config(kind: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the text hyper-parameters of a kind, without the keys that `changes` sets to None."""
    merged = {**_COMMON, **_TEXT[kind], **(changes or {})}
    removed = {key for key, value in (changes or {}).items() if value is None}
    return {key: value for key, value in merged.items() if key not in removed}


def config(kind: str, text: dict[str, Any]) -> dict[str, Any]:
    """Return config.json around text hyper-parameters: flat for text-only kinds, nested for multimodal ones."""
    if kind == "moe":
        return {
            "architectures": ["Gemma4ForConditionalGeneration"],
            "model_type": "gemma4",
            "text_config": text,
            "vision_config": _VISION,
            "audio_config": None,
            "tie_word_embeddings": True,
        }
    if kind == "unified":
        return {
            "architectures": ["Gemma4UnifiedForConditionalGeneration"],
            "model_type": "gemma4_unified",
            "text_config": text,
            "vision_config": None,
            "audio_config": None,
            "tie_word_embeddings": True,
        }
    if kind in DRAFTERS:
        return {**_DRAFTER[kind], "backbone_hidden_size": 256, "text_config": text, "tie_word_embeddings": True}
    return {"architectures": ["Gemma4ForCausalLM"], **text}


def tensor_shapes(kind: str, text: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor that transformers saves for a checkpoint of `kind`."""
    prefix = _PREFIXES.get(kind, "model.")
    hidden, per_layer = text["hidden_size"], text.get("hidden_size_per_layer_input") or 0
    yield f"{prefix}embed_tokens.weight", (text["vocab_size"], hidden)
    yield f"{prefix}norm.weight", (hidden,)
    if per_layer:
        width = per_layer * text["num_hidden_layers"]
        yield f"{prefix}embed_tokens_per_layer.weight", (text["vocab_size_per_layer_input"], width)
        yield f"{prefix}per_layer_model_projection.weight", (width, hidden)
        yield f"{prefix}per_layer_projection_norm.weight", (per_layer,)
    for layer in range(text["num_hidden_layers"]):
        for name, shape in _layer_shapes(text, layer, hidden, per_layer):
            yield f"{prefix}layers.{layer}.{name}", shape
    if kind == "moe":
        yield from _vision_shapes(hidden)
    if kind in DRAFTERS:
        yield "pre_projection.weight", (hidden, 2 * 256)
        yield "post_projection.weight", (256, hidden)
    if kind == "assistant":
        yield "masked_embedding.centroids.weight", (_DRAFTER[kind]["num_centroids"], hidden)


def _vision_shapes(text_hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors of a vision tower with one layer, which a text conversion leaves out."""
    hidden, wide, head = _VISION["hidden_size"], _VISION["intermediate_size"], _VISION["head_dim"]
    yield "model.embed_vision.embedding_projection.weight", (text_hidden, hidden)
    tower = "model.vision_tower."
    yield f"{tower}patch_embedder.position_embedding_table", (2, _VISION["position_embedding_size"], hidden)
    yield f"{tower}patch_embedder.input_proj.weight", (hidden, 3 * 16 * 16)
    layer = f"{tower}encoder.layers.0."
    for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        yield f"{layer}{norm}_layernorm.weight", (hidden,)
    for name in "qkvo":
        yield f"{layer}self_attn.{name}_proj.linear.weight", (hidden, hidden)
    for name in "qk":
        yield f"{layer}self_attn.{name}_norm.weight", (head,)
    yield f"{layer}mlp.gate_proj.linear.weight", (wide, hidden)
    yield f"{layer}mlp.up_proj.linear.weight", (wide, hidden)
    yield f"{layer}mlp.down_proj.linear.weight", (hidden, wide)


def _layer_shapes(
    text: Mapping[str, Any], layer: int, hidden: int, per_layer: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    head, n_kv = _attention_sizes(text, layer)
    is_shared = layer >= text["num_hidden_layers"] - text["num_kv_shared_layers"]
    queries, keys = text["num_attention_heads"] * head, n_kv * head
    wide = text["intermediate_size"] * (2 if is_shared and text.get("use_double_wide_mlp") else 1)
    for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        yield f"{norm}_layernorm.weight", (hidden,)
    yield "layer_scalar", (1,)
    yield "self_attn.q_proj.weight", (queries, hidden)
    yield "self_attn.q_norm.weight", (head,)
    yield "self_attn.o_proj.weight", (hidden, queries)
    if not is_shared:
        yield "self_attn.k_proj.weight", (keys, hidden)
        yield "self_attn.k_norm.weight", (head,)
        if not text.get("attention_k_eq_v") or text["layer_types"][layer] == LOCAL:
            yield "self_attn.v_proj.weight", (keys, hidden)
    yield "mlp.gate_proj.weight", (wide, hidden)
    yield "mlp.up_proj.weight", (wide, hidden)
    yield "mlp.down_proj.weight", (hidden, wide)
    if per_layer:
        yield "per_layer_input_gate.weight", (per_layer, hidden)
        yield "per_layer_projection.weight", (hidden, per_layer)
        yield "post_per_layer_input_norm.weight", (hidden,)
    if text.get("enable_moe_block"):
        n_experts, width = text["num_experts"], text["moe_intermediate_size"]
        yield "router.proj.weight", (n_experts, hidden)
        yield "router.scale", (hidden,)
        yield "router.per_expert_scale", (n_experts,)
        yield "experts.gate_up_proj", (n_experts, 2 * width, hidden)
        yield "experts.down_proj", (n_experts, hidden, width)
        for norm in ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"):
            yield f"{norm}.weight", (hidden,)


def _attention_sizes(text: Mapping[str, Any], layer: int) -> tuple[int, int]:
    """Return head width and key-value heads of a layer."""
    if text["layer_types"][layer] == LOCAL:
        return text["head_dim"], text["num_key_value_heads"]
    own = text.get("per_layer_config", {}).get(str(layer), {})
    head = own.get("head_dim") or text.get("global_head_dim") or text["head_dim"]
    n_kv = own.get("num_key_value_heads") or text.get("num_global_key_value_heads") or text["num_key_value_heads"]
    return head, n_kv


def random_weights(name: str, shape: tuple[int, ...], seed: int, dtype: str = "BF16") -> bytes:
    """Return the bytes of a tensor: bell-shaped weights of variance 1/n_in, or around 1 for norms and scales."""
    n_weights = int(np.prod(shape))
    stream = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    raw = np.atleast_1d(stream.random_raw(n_weights)).astype("<u8")
    halves = raw.view("<u2").reshape(n_weights, 4).astype(np.int64)
    bell = (halves.sum(axis=1) - 2 * 65535).astype(np.float64) / 37837.0  # variance of four uniform 16-bit numbers
    values = 1.0 + bell / 16 if len(shape) <= 1 else bell / np.sqrt(shape[-1])
    if dtype == "BF16":
        return to_bfloat16(values.astype("<f4")).tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def _shuffled(count: int, seed: int) -> bytes:
    """Return the numbers below `count` in a random order, as int64."""
    raw = np.random.PCG64(np.random.SeedSequence([seed, count])).random_raw(count)
    return np.argsort(raw, kind="stable").astype("<i8").tobytes()


def to_bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round finite float32 values to the nearest bfloat16, ties to even; returns uint16 bits."""
    bits = values.view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def write_safetensors(path: Path, tensors: Mapping[str, StoredData]) -> None:
    """Write a safetensors file of {name: (dtype, shape, data)}, padded as the format's own writer does."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in sorted(tensors):
            file.write(tensors[name][2])


def _write_shards(directory: Path, tensors: Mapping[str, StoredData], n_shards: int) -> None:
    if n_shards == 1:
        write_safetensors(directory / "model.safetensors", tensors)
        return
    weight_map = {}
    names = sorted(tensors)
    for number in range(n_shards):
        file_name = f"model-{number + 1:05}-of-{n_shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::n_shards]}
        write_safetensors(directory / file_name, part)
        weight_map.update(dict.fromkeys(part, file_name))
    _write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))
