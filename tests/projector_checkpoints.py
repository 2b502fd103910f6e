"""Small random multimodal Gemma 4 checkpoints, written without torch and the same on every machine.

Names and shapes are those that transformers saves for the configs; golden/projector-KIND-*.json holds what
llama.cpp's converter makes of them.
"""

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import (
    EXAMPLE,
    StoredData,
    random_weights,
    tensor_shapes,
    text_config,
    to_bfloat16,
    write_safetensors,
)

KINDS = ("full", "standardized", "wide", "unified")

DIRECTORY_NAMES = {
    "full": "gemma-4-E2B-it",
    "standardized": "gemma-4-tiny-31B-it",
    "wide": "my_towers",
    "unified": "gemma-4-12B",
}
"""Names of the directories that the recorded facts were made in; llama.cpp guesses `general.name` from them."""

_VISION: dict[str, dict[str, Any]] = {
    "full": {  # as E2B: clipped, not standardized
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "position_embedding_size": 320,
        "use_clipped_linears": True,
    },
    "standardized": {  # as 31B: standardized, not clipped
        "head_dim": 24,
        "hidden_size": 72,
        "intermediate_size": 104,
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 3,
        "position_embedding_size": 64,
        "standardize": True,
    },
    "wide": {
        "head_dim": 32,
        "hidden_size": 32,
        "intermediate_size": 160,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "patch_size": 8,
        "position_embedding_size": 96,
        "standardize": True,
        "use_clipped_linears": True,
    },
    "unified": {"mm_embed_dim": 96, "mm_posemb_size": 40, "output_proj_dims": 96, "patch_size": 4},
}

_AUDIO: dict[str, dict[str, Any] | None] = {
    "full": {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "output_proj_dims": 80,
        "subsampling_conv_channels": [128, 8],
    },
    "standardized": None,
    "wide": {
        "hidden_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "output_proj_dims": 40,
        "subsampling_conv_channels": [128, 16],
        "use_clipped_linears": False,
    },
    "unified": {"audio_embed_dim": 640},
}

_TEXT_KINDS = {"full": "e", "standardized": "dense", "wide": "dense", "unified": "unified"}

PROCESSOR = {
    "feature_extractor": {"feature_size": 128, "sampling_rate": 16000},
    "image_processor": {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0], "patch_size": 16},
    "processor_class": "Gemma4Processor",
}


def write_multimodal(
    directory: Path,
    kind: str = "full",
    *,
    vision: Mapping[str, Any] | None = None,
    audio: Mapping[str, Any] | None = None,
    dtype: str = "BF16",
    with_text: bool = False,
    with_processor: bool = True,
) -> Path:
    """Write a checkpoint of `kind` (see KINDS) into `directory` and return it.

    vision, audio: settings of the towers that differ from the kind's. dtype: BF16, F16 or F32, how weights are
    stored. with_text: also the text decoder, else only one tensor of it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = multimodal_config(kind, vision, audio)
    _write_json(directory / "config.json", config)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(EXAMPLE / name, directory / name)
    if with_processor:
        _write_json(directory / "processor_config.json", PROCESSOR)
    shapes = dict(tower_shapes(config))
    if with_text:
        shapes |= dict(_text_shapes(kind))
    tensors = {name: stored(name, shape, dtype) for name, shape in shapes.items()}
    tensors.setdefault("model.language_model.norm.weight", stored("norm.weight", (256,), dtype))
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def multimodal_config(
    kind: str, vision: Mapping[str, Any] | None = None, audio: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return config.json of a kind with changed settings of the towers."""
    infix = "_unified" if kind == "unified" else ""
    own_audio = _AUDIO[kind]
    return {
        "architectures": [f"Gemma4{infix[1:].title()}ForConditionalGeneration"],
        "model_type": f"gemma4{infix}",
        "text_config": text_config(_TEXT_KINDS[kind]),
        "vision_config": {"patch_size": 16, **_VISION[kind], **(vision or {}), "model_type": f"gemma4{infix}_vision"},
        "audio_config": own_audio and {**own_audio, **(audio or {}), "model_type": f"gemma4{infix}_audio"},
        "tie_word_embeddings": True,
    }


def tower_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor beside the text decoder that transformers saves for `config`."""
    vision, audio = config["vision_config"], config["audio_config"]
    hidden = config["text_config"]["hidden_size"]
    if vision and "mm_embed_dim" in vision:
        yield from _embedder_shapes(vision)
        yield "model.embed_vision.embedding_projection.weight", (hidden, vision["mm_embed_dim"])
    elif vision:
        yield from _vision_shapes(vision)
        yield "model.embed_vision.embedding_projection.weight", (hidden, vision["hidden_size"])
    if audio and "audio_embed_dim" in audio:
        yield "model.embed_audio.embedding_projection.weight", (hidden, audio["audio_embed_dim"])
    elif audio:
        yield from _audio_shapes(audio)
        yield "model.embed_audio.embedding_projection.weight", (hidden, audio["output_proj_dims"])


def stored(name: str, shape: tuple[int, ...], dtype: str) -> StoredData:
    """Return a tensor as it is stored: random, with limits and standardization as trained towers have them."""
    return dtype, shape, _special(name, shape, dtype) or random_weights(name, shape, 0, dtype)


def _special(name: str, shape: tuple[int, ...], dtype: str) -> bytes | None:
    number = zlib.crc32(name.encode())
    if name.endswith(("_min", "_max")):
        # a third of the limits is none, as those of a new model
        size = np.float32(1 + number % 64 / 8 if number % 3 else "inf")
        values = np.asarray(-size if name.endswith("_min") else size, np.float32)
    elif name.endswith("std_bias"):
        values = np.linspace(-30, 30, shape[0], dtype=np.float32)
    else:
        return None
    if dtype == "BF16":
        return to_bfloat16(values.reshape(-1)).tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def _text_shapes(kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    text_kind = _TEXT_KINDS[kind]
    for name, shape in tensor_shapes(text_kind, text_config(text_kind)):
        yield "model.language_model." + name.removeprefix("model.").removeprefix("language_model."), shape


def _linear(name: str, n_out: int, n_in: int, is_clipped: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.linear.weight", (n_out, n_in)
    if is_clipped:
        for limit in ("input_min", "input_max", "output_min", "output_max"):
            yield f"{name}.{limit}", ()


def _vision_shapes(vision: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    tower = "model.vision_tower."
    hidden, wide, head = vision["hidden_size"], vision["intermediate_size"], vision["head_dim"]
    queries, keys = vision["num_attention_heads"] * head, vision["num_key_value_heads"] * head
    is_clipped = vision.get("use_clipped_linears", False)
    yield f"{tower}patch_embedder.position_embedding_table", (2, vision["position_embedding_size"], hidden)
    yield f"{tower}patch_embedder.input_proj.weight", (hidden, 3 * vision["patch_size"] ** 2)
    if vision.get("standardize"):
        yield f"{tower}std_bias", (hidden,)
        yield f"{tower}std_scale", (hidden,)
    for number in range(vision["num_hidden_layers"]):
        layer = f"{tower}encoder.layers.{number}."
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{layer}{norm}_layernorm.weight", (hidden,)
        for name, width in (("q", queries), ("k", keys), ("v", keys)):
            yield from _linear(f"{layer}self_attn.{name}_proj", width, hidden, is_clipped)
        yield from _linear(f"{layer}self_attn.o_proj", hidden, queries, is_clipped)
        for name in "qk":
            yield f"{layer}self_attn.{name}_norm.weight", (head,)
        for name in ("gate", "up"):
            yield from _linear(f"{layer}mlp.{name}_proj", wide, hidden, is_clipped)
        yield from _linear(f"{layer}mlp.down_proj", hidden, wide, is_clipped)


def _audio_shapes(audio: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    tower = "model.audio_tower."
    hidden, (first, second) = audio["hidden_size"], audio["subsampling_conv_channels"]
    is_clipped = audio.get("use_clipped_linears", True)
    for number, (n_in, n_out) in enumerate(((1, first), (first, second))):
        yield f"{tower}subsample_conv_projection.layer{number}.conv.weight", (n_out, n_in, 3, 3)
        yield f"{tower}subsample_conv_projection.layer{number}.norm.weight", (n_out,)
    yield f"{tower}subsample_conv_projection.input_proj_linear.weight", (hidden, first // 4 * second)
    yield f"{tower}output_proj.weight", (audio["output_proj_dims"], hidden)
    yield f"{tower}output_proj.bias", (audio["output_proj_dims"],)
    for number in range(audio["num_hidden_layers"]):
        layer = f"{tower}layers.{number}."
        for forward in ("feed_forward1", "feed_forward2"):
            yield from _linear(f"{layer}{forward}.ffw_layer_1", 4 * hidden, hidden, is_clipped)
            yield from _linear(f"{layer}{forward}.ffw_layer_2", hidden, 4 * hidden, is_clipped)
            yield f"{layer}{forward}.pre_layer_norm.weight", (hidden,)
            yield f"{layer}{forward}.post_layer_norm.weight", (hidden,)
        for name in ("q_proj", "k_proj", "v_proj", "post"):
            yield from _linear(f"{layer}self_attn.{name}", hidden, hidden, is_clipped)
        yield f"{layer}self_attn.per_dim_scale", (hidden // audio["num_attention_heads"],)
        yield f"{layer}self_attn.relative_k_proj.weight", (hidden, hidden)
        yield from _linear(f"{layer}lconv1d.linear_start", 2 * hidden, hidden, is_clipped)
        yield from _linear(f"{layer}lconv1d.linear_end", hidden, hidden, is_clipped)
        yield f"{layer}lconv1d.depthwise_conv1d.weight", (hidden, 1, 5)
        for norm in ("lconv1d.pre_layer_norm", "lconv1d.conv_norm", "norm_pre_attn", "norm_post_attn", "norm_out"):
            yield f"{layer}{norm}.weight", (hidden,)


def _embedder_shapes(vision: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    embedder, width = "model.vision_embedder.", vision["mm_embed_dim"]
    pixels = 3 * (vision["patch_size"] * vision.get("pooling_kernel_size", 3)) ** 2
    yield f"{embedder}pos_embedding", (vision["mm_posemb_size"], 2, width)
    yield f"{embedder}patch_dense.weight", (width, pixels)
    for name, size in (("patch_ln1", pixels), ("patch_ln2", width), ("pos_norm", width)):
        yield f"{embedder}{name}.weight", (size,)
        yield f"{embedder}{name}.bias", (size,)
    yield f"{embedder}patch_dense.bias", (width,)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))
