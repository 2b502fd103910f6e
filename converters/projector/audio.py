"""Audio encoders: where their tensors go in a `clip` GGUF (tools/mtmd/clip-impl.h, gemma4a.cpp, gemma4ua.cpp)."""

from collections.abc import Iterator

from gemma4_quant.converters.places import Place
from gemma4_quant.converters.projector.clipped import linear_places
from gemma4_quant.converters.projector.config import AudioFrames, Conformer
from gemma4_quant.converters.projector.rows import activated, without_middle_axis

PROJECTION = "embed_audio.embedding_projection.weight", "mm.a.input_projection.weight"

# The norms of the convolution have each other's names in GGUF; gemma4a.cpp's loader swaps them back.
_VECTORS = {
    "feed_forward1.pre_layer_norm": "ffn_norm",
    "feed_forward1.post_layer_norm": "ffn_post_norm",
    "norm_pre_attn": "attn_pre_norm",
    "norm_post_attn": "attn_post_norm",
    "lconv1d.pre_layer_norm": "conv_norm",
    "lconv1d.conv_norm": "norm_conv",
    "feed_forward2.pre_layer_norm": "ffn_norm_1",
    "feed_forward2.post_layer_norm": "ffn_post_norm_1",
    "norm_out": "ln2",
}


def frame_places(frames: AudioFrames, text_hidden: int) -> Iterator[Place]:
    """Yield the place of the one matrix of a unified model's audio."""
    yield Place(*PROJECTION, (text_hidden, frames.width))


def conformer_places(conformer: Conformer, text_hidden: int) -> Iterator[Place]:
    """Yield the place of every tensor that an audio tower and its projection have."""
    hidden, output = conformer.hidden, conformer.output
    yield Place(*PROJECTION, (text_hidden, output))
    yield Place("audio_tower.output_proj.weight", "a.pre_encode.out.weight", (output, hidden))
    yield Place("audio_tower.output_proj.bias", "a.pre_encode.out.bias", (output,))
    name = "audio_tower.subsample_conv_projection."
    for number, (n_in, n_out) in enumerate(((1, conformer.channels[0]), conformer.channels)):
        kernel = (n_out, n_in, 3, 3)
        yield Place(f"{name}layer{number}.conv.weight", f"a.conv1d.{number}.weight", kernel)
        yield Place(f"{name}layer{number}.norm.weight", f"a.conv1d.{number}.norm.weight", (n_out,))
    yield Place(f"{name}input_proj_linear.weight", "a.input_projection.weight", (hidden, conformer.flattened))
    for number in range(conformer.n_layers):
        yield from _layer_places(conformer, f"audio_tower.layers.{number}.", f"a.blk.{number}.")


def _layer_places(conformer: Conformer, name: str, gguf: str) -> Iterator[Place]:
    hidden = conformer.hidden
    heads = conformer.n_heads * conformer.head_width
    linears = {
        "feed_forward1.ffw_layer_1": ("ffn_up", (4 * hidden, hidden)),
        "feed_forward1.ffw_layer_2": ("ffn_down", (hidden, 4 * hidden)),
        "self_attn.q_proj": ("attn_q", (heads, hidden)),
        "self_attn.k_proj": ("attn_k", (heads, hidden)),
        "self_attn.v_proj": ("attn_v", (heads, hidden)),
        "self_attn.post": ("attn_out", (hidden, hidden)),
        "lconv1d.linear_start": ("conv_pw1", (2 * hidden, hidden)),
        "lconv1d.linear_end": ("conv_pw2", (hidden, hidden)),
        "feed_forward2.ffw_layer_1": ("ffn_up_1", (4 * hidden, hidden)),
        "feed_forward2.ffw_layer_2": ("ffn_down_1", (hidden, 4 * hidden)),
    }
    for part, (to, shape) in linears.items():
        yield from linear_places(name + part, gguf + to, shape, is_clipped=conformer.is_clipped)
    for part, to in _VECTORS.items():
        yield Place(f"{name}{part}.weight", f"{gguf}{to}.weight", (hidden,))
    yield Place(f"{name}self_attn.relative_k_proj.weight", f"{gguf}attn_k_rel.weight", (heads, hidden))
    scale = f"{gguf}per_dim_scale.weight"
    yield Place(f"{name}self_attn.per_dim_scale", scale, (conformer.head_width,), transform=activated)
    kernel = (hidden, 1, conformer.kernel)
    convolution = f"{name}lconv1d.depthwise_conv1d.weight"
    yield Place(convolution, f"{gguf}conv_dw.weight", kernel, transform=without_middle_axis)
