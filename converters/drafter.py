"""Gemma 4 drafters (`-assistant` checkpoints), which propose tokens that a target model checks several at a time.

A drafter is a small decoder whose layers all read the target's keys and values, between two projections from and to
the target's width. Names follow llama.cpp (llama-arch.cpp and models/gemma4-assistant.cpp, architecture
`gemma4-assistant`).
"""

import re
from collections.abc import Iterator

from gemma4_quant.converters.gemma4 import ALWAYS, OPTIONAL, layer_sizes
from gemma4_quant.converters.places import Drop, Place
from gemma4_quant.converters.text_config import TextConfig
from gemma4_quant.formats.json_input import Fields
from gemma4_quant.metadata import Value, uint32

ARCHITECTURE = "gemma4-assistant"

DROPS = (
    Drop(
        re.compile(r"^masked_embedding\."),
        "llama.cpp scores every token, and its loader refuses centroids of any size",
    ),
    Drop(
        re.compile(r"\.self_attn\.(?:k_proj|v_proj|k_norm)\.weight$"),
        "a drafter reads the keys and values of its target",
    ),
    Drop(re.compile(r"^lm_head\.weight$"), "the token embeddings are the output matrix too"),
)
"""Centroids (`masked_embedding.centroids`, `.token_ordering`) only choose which logits are computed.
gemma4-assistant.cpp asks for both tensors without dimensions, so llama.cpp loads no file that has them."""


def read_backbone_width(fields: Fields, default: int) -> int:
    """Return the width of the target's hidden states; fields: the whole config.json."""
    return fields.integer("backbone_hidden_size", default, high=2**24)


def drafter_problems(config: TextConfig, backbone_width: int) -> list[str]:
    """Say what in the config of a drafter llama.cpp or transformers does not allow."""
    problems = []
    if config.n_kv_shared != config.n_layers:
        problems.append(
            f"{config.n_kv_shared} of {config.n_layers} layers share keys and values; in a drafter all of them do"
        )
    for name, is_there in (
        ("per-layer embeddings", config.per_layer_width > 0),
        ("experts", config.is_moe),
        ("double-wide layers", config.is_double_wide),
        ("an output matrix of its own", not config.is_tied),
    ):
        if is_there:
            problems.append(f"a drafter cannot have {name}")
    if backbone_width == config.hidden:
        problems.append(f"drafter and target are both {backbone_width} wide; llama.cpp needs different widths")
    return problems


def drafter_places(config: TextConfig, n_tokens: int, backbone_width: int) -> Iterator[Place]:
    """Yield the place of every tensor that a drafter has; see gemma4.tensor_places."""
    yield Place("embed_tokens.weight", "token_embd.weight", (config.vocabulary, config.hidden), max_rows=n_tokens)
    yield Place("norm.weight", "output_norm.weight", (config.hidden,))
    yield Place("pre_projection.weight", "nextn.pre_projection.weight", (config.hidden, 2 * backbone_width))
    yield Place("post_projection.weight", "nextn.post_projection.weight", (backbone_width, config.hidden))
    for number in range(config.n_layers):
        sizes = layer_sizes(config, number)
        for name, (gguf, shape) in {**ALWAYS, **OPTIONAL}.items():  # llama.cpp needs the layer's scale here
            yield Place(f"layers.{number}.{name}", f"blk.{number}.{gguf}", shape(sizes))


def drafter_parameters(config: TextConfig, backbone_width: int) -> dict[str, Value]:
    """Return the metadata that a drafter has beside that of a decoder."""
    return {
        f"{ARCHITECTURE}.embedding_length_out": uint32(backbone_width),
        f"{ARCHITECTURE}.nextn_predict_layers": uint32(config.n_layers),
    }
