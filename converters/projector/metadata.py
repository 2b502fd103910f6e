"""The `clip.*` keys that describe encoders to llama.cpp's mtmd, in the order of llama.cpp's converter."""

from dataclasses import dataclass

from gemma4_quant.converters.projector.config import (
    AudioFrames,
    Conformer,
    PatchEmbedder,
    ProjectorConfig,
    VisionTower,
)
from gemma4_quant.converters.projector.pictures import PictureStatistics
from gemma4_quant.metadata import Value, ValueType, boolean, float32, numbers, string, uint32

ARCHITECTURE = "clip"

DEFAULT_POOLING = 3
"""What clip.cpp takes for gemma4v and gemma4uv when the file does not say."""

_UNUSED_IMAGE_SIZE = 224
"""Gemma 4 has no fixed picture size, but clip.cpp wants one; this is what llama.cpp's converter writes."""

_UNIFIED_MEL_BANDS = 128
"""The unified models have no spectrogram; llama.cpp's converter writes this all the same."""


@dataclass(frozen=True)
class _Sizes:
    """What every kind of encoder has a key for, all zero but the first where there are no layers."""

    hidden: int
    feed_forward: int = 0
    n_layers: int = 0
    n_heads: int = 0


def encoder_metadata(
    config: ProjectorConfig, pictures: PictureStatistics, file_type: Value, *, exact_gelu: bool
) -> dict[str, Value]:
    """Return the metadata after `general.*`, beginning with the file type.

    exact_gelu: see activation_metadata.
    """
    vision, audio = config.vision, config.audio
    return {
        "general.file_type": file_type,
        **({} if vision is None else _vision_sizes(vision, config.text_hidden, pictures)),
        **({} if audio is None else _audio_sizes(audio, config.text_hidden)),
        **({} if vision is None else _vision_kind(vision)),
        **({} if audio is None else _audio_kind(audio)),
        **(activation_metadata(vision, exact_gelu=exact_gelu) if isinstance(vision, VisionTower) else {}),
    }


def activation_metadata(tower: VisionTower, *, exact_gelu: bool) -> dict[str, Value]:
    """Return the key for a tower's activation.

    Without one, clip.cpp computes x·σ(1.702x), and llama.cpp's converter writes none. exact_gelu: have it compute the
    GELU that the model has.
    """
    if tower.activation == "silu":
        return {"clip.use_silu": boolean(True)}
    return {"clip.use_gelu": boolean(True)} if exact_gelu else {}


def _vision_sizes(
    vision: VisionTower | PatchEmbedder, text_hidden: int, pictures: PictureStatistics
) -> dict[str, Value]:
    if isinstance(vision, VisionTower):
        sizes = _Sizes(vision.hidden, vision.feed_forward, vision.n_layers, vision.n_heads)
    else:
        sizes = _Sizes(vision.hidden)
    return {
        "clip.has_vision_encoder": boolean(True),
        "clip.vision.projection_dim": uint32(text_hidden),
        "clip.vision.image_size": uint32(_UNUSED_IMAGE_SIZE),
        "clip.vision.patch_size": uint32(vision.patch_size),
        **_layer_sizes("vision", sizes),
        "clip.vision.image_mean": numbers(ValueType.FLOAT32, pictures.mean),
        "clip.vision.image_std": numbers(ValueType.FLOAT32, pictures.deviation),
    }


def _audio_sizes(audio: Conformer | AudioFrames, text_hidden: int) -> dict[str, Value]:
    if isinstance(audio, Conformer):
        sizes = _Sizes(audio.hidden, 4 * audio.hidden, audio.n_layers, audio.n_heads)
    else:
        sizes = _Sizes(audio.width)
    return {
        "clip.has_audio_encoder": boolean(True),
        "clip.audio.projection_dim": uint32(text_hidden),
        **_layer_sizes("audio", sizes),
    }


def _layer_sizes(kind: str, sizes: _Sizes) -> dict[str, Value]:
    return {
        f"clip.{kind}.embedding_length": uint32(sizes.hidden),
        f"clip.{kind}.feed_forward_length": uint32(sizes.feed_forward),
        f"clip.{kind}.block_count": uint32(sizes.n_layers),
        f"clip.{kind}.attention.head_count": uint32(sizes.n_heads),
    }


def _vision_kind(vision: VisionTower | PatchEmbedder) -> dict[str, Value]:
    return {
        "clip.vision.projector_type": string("gemma4v" if isinstance(vision, VisionTower) else "gemma4uv"),
        "clip.vision.attention.layer_norm_epsilon": float32(vision.norm_epsilon),
        **_unusual_sizes(vision),
    }


def _unusual_sizes(vision: VisionTower | PatchEmbedder) -> dict[str, Value]:
    """Return keys that llama.cpp's converter never writes, needed where a model differs from what they default to."""
    unusual = {}
    if vision.pooling != DEFAULT_POOLING:
        unusual["clip.vision.projector.scale_factor"] = uint32(vision.pooling)
    if isinstance(vision, VisionTower):
        if vision.n_heads * vision.head_width != vision.hidden:
            unusual["clip.vision.attention.head_dim"] = uint32(vision.head_width)
        if vision.n_kv_heads != vision.n_heads:
            unusual["clip.vision.attention.head_count_kv"] = uint32(vision.n_kv_heads)
    return unusual


def _audio_kind(audio: Conformer | AudioFrames) -> dict[str, Value]:
    is_conformer = isinstance(audio, Conformer)
    return {
        "clip.audio.projector_type": string("gemma4a" if is_conformer else "gemma4ua"),
        "clip.audio.num_mel_bins": uint32(audio.n_mel if isinstance(audio, Conformer) else _UNIFIED_MEL_BANDS),
        "clip.audio.attention.layer_norm_epsilon": float32(audio.norm_epsilon),
    }
