"""The smallest models of each kind, to be damaged thousands of times: some 20,000 weights, some 300 tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import GLOBAL, LOCAL, config, random_weights, tensor_shapes, text_config, write_safetensors

from gemma4_quant.calibration.importance import Entry, Importance, write_importance
from gemma4_quant.conversion import convert
from gemma4_quant.formats.gguf_reader import read_gguf

KINDS = ("dense", "moe", "e", "unified")

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
TOKENS = (
    *_SPECIAL,
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "\u2581",
    *"abcdefghijklmnopqrstuvwxyz",
    "ab",
    "\u2581a",
)

_COMMON: dict[str, Any] = {
    "head_dim": 16,
    "hidden_size": 32,
    "intermediate_size": 64,
    "layer_types": [LOCAL, GLOBAL],
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "sliding_window": 16,
    "vocab_size": len(TOKENS),
}
_GLOBAL_LAYER = {"1": {"head_dim": 32, "num_key_value_heads": 1}}
_OWN: dict[str, dict[str, Any]] = {
    "dense": {"per_layer_config": _GLOBAL_LAYER},
    "moe": {"global_head_dim": 32, "moe_intermediate_size": 32, "num_experts": 2, "top_k_experts": 1},
    "e": {
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 32,
        "layer_types": [LOCAL, GLOBAL, LOCAL, GLOBAL],
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": len(TOKENS),
    },
    "unified": {"per_layer_config": _GLOBAL_LAYER},
}


def tokenizer() -> dict[str, Any]:
    """Return a tokenizer.json in miniature."""
    return {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": text, "special": True} for number, text in enumerate(_SPECIAL)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": {text: number for number, text in enumerate(TOKENS)},
            "merges": [["a", "b"], ["\u2581", "a"]],
        },
    }


def documents(kind: str) -> dict[str, Any]:
    """Return every JSON document of a checkpoint by file name."""
    return {
        "config.json": config(kind, text_config(kind, {**_COMMON, **_OWN[kind]})),
        "generation_config.json": {"suppress_tokens": [7, 8], "temperature": 1.0, "top_k": 64, "top_p": 0.95},
        "special_tokens_map.json": {"eos_token": {"content": "<eos>"}, "additional_special_tokens": ["<unk>"]},
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": {
            "add_bos_token": True,
            "bos_token": "<bos>",
            "chat_template": "{{ bos_token }}{{ messages[0].content }}",
            "eos_token": {"content": "<eos>"},
            "extra_special_tokens": ["<unk>"],
            "pad_token": "<pad>",
            "tokenizer_class": "GemmaTokenizer",
        },
    }


def write_tiny(directory: Path, kind: str = "e") -> Path:
    """Write a checkpoint of `kind` with an index and one shard; return its directory."""
    directory.mkdir(parents=True)
    for name, document in documents(kind).items():
        (directory / name).write_text(json.dumps(document))
    text = text_config(kind, {**_COMMON, **_OWN[kind]})
    tensors = {name: ("BF16", shape, random_weights(name, shape, 0)) for name, shape in tensor_shapes(kind, text)}
    shard = "model-00001-of-00001.safetensors"
    write_safetensors(directory / shard, tensors)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, shard)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "README.md").write_text(
        "---\nlicense: apache-2.0\ntags:\n- gemma\nbase_model: example/base\n---\n# A\n"
    )
    return directory


def write_tiny_gguf(directory: Path, kind: str = "e") -> Path:
    """Write a checkpoint and its GGUF into `directory`; return the latter."""
    return convert(write_tiny(directory / "checkpoint", kind), directory / "model.gguf", "bf16").path


def write_tiny_importance(path: Path, model: Path) -> Path:
    """Write an importance file for the matrices of a GGUF."""
    random = np.random.default_rng(0)
    entries = {
        tensor.name: Entry(
            random.random((tensor.n_matrices, tensor.n_cols), np.float32), np.full(tensor.n_matrices, 8, np.float32)
        )
        for tensor in read_gguf(model).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1
    }
    write_importance(path, Importance(entries, ("text.txt",), 1, 8))
    return path
