"""Vision encoders: where their tensors go in a `clip` GGUF (tools/mtmd/clip-impl.h, gemma4v.cpp, gemma4uv.cpp)."""

from collections.abc import Iterator
from functools import partial

from gemma4_quant.converters.places import Place, Presence
from gemma4_quant.converters.projector.clipped import linear_places
from gemma4_quant.converters.projector.config import PatchEmbedder, VisionTower
from gemma4_quant.converters.projector.rows import planes_from_pixels, reorder_columns, squares_of_planes, swap_axes

PROJECTION = "embed_vision.embedding_projection.weight", "mm.input_projection.weight"


def tower_places(tower: VisionTower, text_hidden: int) -> Iterator[Place]:
    """Yield the place of every tensor that a vision tower and its projection have or may have."""
    hidden, side = tower.hidden, tower.patch_size
    yield Place(*PROJECTION, (text_hidden, hidden))
    yield Place(
        "vision_tower.patch_embedder.input_proj.weight",
        "v.patch_embd.weight",
        (hidden, 3 * side * side),
        transform=partial(squares_of_planes, side=side),
    )
    positions = (2, tower.n_positions, hidden)
    yield Place("vision_tower.patch_embedder.position_embedding_table", "v.position_embd.weight", positions)
    if tower.is_standardized:
        yield Place("vision_tower.std_bias", "v.std_bias", (hidden,))
        yield Place("vision_tower.std_scale", "v.std_scale", (hidden,))
    for number in range(tower.n_layers):
        yield from _layer_places(tower, f"vision_tower.encoder.layers.{number}.", f"v.blk.{number}.")


def _layer_places(tower: VisionTower, name: str, gguf: str) -> Iterator[Place]:
    hidden, wide = tower.hidden, tower.feed_forward
    queries, keys = tower.n_heads * tower.head_width, tower.n_kv_heads * tower.head_width
    linears = {
        "self_attn.q_proj": ("attn_q", (queries, hidden)),
        "self_attn.k_proj": ("attn_k", (keys, hidden)),
        "self_attn.v_proj": ("attn_v", (keys, hidden)),
        "self_attn.o_proj": ("attn_out", (hidden, queries)),
        "mlp.gate_proj": ("ffn_gate", (wide, hidden)),
        "mlp.up_proj": ("ffn_up", (wide, hidden)),
        "mlp.down_proj": ("ffn_down", (hidden, wide)),
    }
    vectors = {
        "input_layernorm": ("ln1", hidden),
        "self_attn.q_norm": ("attn_q_norm", tower.head_width),
        "self_attn.k_norm": ("attn_k_norm", tower.head_width),
        "post_attention_layernorm": ("attn_post_norm", hidden),
        "pre_feedforward_layernorm": ("ln2", hidden),
        "post_feedforward_layernorm": ("ffn_post_norm", hidden),
    }
    for part, (to, shape) in linears.items():
        yield from linear_places(name + part, gguf + to, shape, is_clipped=tower.is_clipped)
    for part, (to, size) in vectors.items():
        yield Place(f"{name}{part}.weight", f"{gguf}{to}.weight", (size,))
    yield Place(f"{name}layer_scalar", f"{gguf}out_scale.weight", (1,), Presence.OPTIONAL)


def embedder_places(embedder: PatchEmbedder, text_hidden: int) -> Iterator[Place]:
    """Yield the place of every tensor of a unified model's patch embedder and its projection."""
    hidden, pixels = embedder.hidden, embedder.n_pixel_values
    # ggml cuts a picture into planes (RR…GG…BB…), transformers into pixels (RGBRGB…)
    in_planes = partial(reorder_columns, columns=planes_from_pixels(embedder.patch_size * embedder.pooling))
    yield Place(*PROJECTION, (text_hidden, hidden))
    name = "vision_embedder."
    yield Place(f"{name}patch_dense.weight", "v.patch_embd.weight", (hidden, pixels), transform=in_planes)
    yield Place(f"{name}patch_dense.bias", "v.patch_embd.bias", (hidden,))
    for kind in ("weight", "bias"):
        yield Place(f"{name}patch_ln1.{kind}", f"v.patch_norm.1.{kind}", (pixels,), transform=in_planes)
        yield Place(f"{name}patch_ln2.{kind}", f"v.patch_norm.2.{kind}", (hidden,))
        yield Place(f"{name}pos_norm.{kind}", f"v.patch_norm.3.{kind}", (hidden,))
    positions = (embedder.n_positions, 2, hidden)
    yield Place(f"{name}pos_embedding", "v.position_embd.weight", positions, transform=swap_axes)
