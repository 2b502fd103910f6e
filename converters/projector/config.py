"""Hyper-parameters of the encoders beside a Gemma 4 text decoder, read from config.json.

Defaults for missing keys are those of transformers' Gemma4VisionConfig, Gemma4AudioConfig and their unified kin.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma4_quant.converters.families import GEMMA4, UNIFIED, find_family
from gemma4_quant.converters.text_config import text_fields
from gemma4_quant.errors import ConfigError
from gemma4_quant.formats.json_input import Fields

MAX_LAYERS = 128
"""Blocks that llama.cpp's converter has names for (conversion/base.py, MmprojModel)."""

_MAX_SIZE = 2**20  # keeps every product of three sizes far from overflow


@dataclass(frozen=True)
class VisionTower:
    """A transformer over patches of pixels. n_positions: rows of each of the two position tables."""

    hidden: int
    feed_forward: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_width: int
    patch_size: int
    pooling: int
    n_positions: int
    is_clipped: bool
    is_standardized: bool
    norm_epsilon: float
    rope_base: float
    activation: str


@dataclass(frozen=True)
class PatchEmbedder:
    """The unified models' way from patches of pixels to embeddings: a matrix between norms, no transformer.

    patch_size times pooling is the side of the square that becomes one token.
    """

    patch_size: int
    pooling: int
    hidden: int
    n_positions: int
    norm_epsilon: float

    @property
    def n_pixel_values(self) -> int:
        """Red, green and blue values of one token's square."""
        return 3 * (self.patch_size * self.pooling) ** 2


@dataclass(frozen=True)
class Conformer:
    """The audio encoder. channels: of the two convolutions that subsample the spectrogram.

    n_mel: bands of the spectrogram. chunk, left, right: how far attention reaches, in frames.
    """

    hidden: int
    n_layers: int
    n_heads: int
    channels: tuple[int, int]
    n_mel: int
    kernel: int
    output: int
    is_clipped: bool
    norm_epsilon: float
    chunk: int
    left: int
    right: int
    logit_cap: float
    residual_weight: float
    activation: str

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.n_heads

    @property
    def flattened(self) -> int:
        """Values of one frame after the subsampling."""
        return self.channels[0] // 4 * self.channels[1]


@dataclass(frozen=True)
class AudioFrames:
    """The unified models' way from sound to embeddings: frames of `width` samples times a matrix."""

    width: int
    norm_epsilon: float


@dataclass(frozen=True)
class ProjectorConfig:
    """What stands between pictures and sound and a text decoder whose embeddings are `text_hidden` wide."""

    text_hidden: int
    vision: VisionTower | PatchEmbedder | None
    audio: Conformer | AudioFrames | None


def has_encoders(config: Mapping[str, Any]) -> bool:
    """Tell whether config.json describes encoders beside the text decoder; see read_projector_config."""
    return any(_is_there(config, key) for key in ("vision_config", "audio_config"))


def read_projector_config(config: Mapping[str, Any]) -> ProjectorConfig:
    """Read the encoders of config.json.

    Raises ConfigError for a missing or impossible value, and for a model that has no encoders.
    """
    family = find_family(config)
    if family not in (GEMMA4, UNIFIED):
        raise ConfigError("config.json describes a drafter, which has no projector; give its target model")
    if not has_encoders(config):
        raise ConfigError(
            "config.json has neither vision_config nor audio_config: this is a text-only model without a projector"
        )
    is_unified = family is UNIFIED
    fields = Fields(config, "config.json")
    vision = fields.inner("vision_config") if _is_there(config, "vision_config") else None
    audio = fields.inner("audio_config") if _is_there(config, "audio_config") else None
    return ProjectorConfig(
        text_hidden=text_fields(config).integer("hidden_size", 2304, high=_MAX_SIZE),
        vision=None if vision is None else (_read_embedder(vision) if is_unified else _read_tower(vision)),
        audio=None if audio is None else (_read_frames(audio) if is_unified else _read_conformer(audio)),
    )


def _is_there(config: Mapping[str, Any], key: str) -> bool:
    return config.get(key) not in (None, {})  # empty is as good as none, as in llama.cpp's converter


def _read_tower(fields: Fields) -> VisionTower:
    n_heads = fields.integer("num_attention_heads", 12, high=_MAX_SIZE)
    rope = fields.inner("rope_parameters") if "rope_parameters" in fields else Fields({}, fields.source)
    return VisionTower(
        hidden=fields.integer("hidden_size", 768, high=_MAX_SIZE),
        feed_forward=fields.integer("intermediate_size", 3072, high=_MAX_SIZE),
        n_layers=fields.integer("num_hidden_layers", 16, high=MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=fields.integer("num_key_value_heads", 12, high=_MAX_SIZE),
        head_width=fields.integer("head_dim", 64, high=_MAX_SIZE),
        patch_size=fields.integer("patch_size", 16, high=1024),
        pooling=fields.integer("pooling_kernel_size", 3, high=64),
        n_positions=fields.integer("position_embedding_size", 10_240, high=_MAX_SIZE),
        is_clipped=fields.flag("use_clipped_linears", False),
        is_standardized=fields.flag("standardize", False),
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        rope_base=rope.number("rope_theta", 100.0),
        activation=fields.text("hidden_activation", "gelu_pytorch_tanh"),
    )


def _read_embedder(fields: Fields) -> PatchEmbedder:
    patch_size = fields.integer("patch_size", 16, high=1024)
    pooling = fields.integer("pooling_kernel_size", 3, high=64)
    if "model_patch_size" in fields and fields.integer("model_patch_size") != patch_size * pooling:
        fields.fail("model_patch_size", f"is not patch_size times pooling_kernel_size, {patch_size * pooling}")
    return PatchEmbedder(
        patch_size=patch_size,
        pooling=pooling,
        hidden=fields.integer("mm_embed_dim", 3840, high=_MAX_SIZE),
        n_positions=fields.integer("mm_posemb_size", 1120, high=_MAX_SIZE),
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
    )


def _read_conformer(fields: Fields) -> Conformer:
    channels = _read_channels(fields)
    return Conformer(
        hidden=fields.integer("hidden_size", 1024, high=_MAX_SIZE),
        n_layers=fields.integer("num_hidden_layers", 12, high=MAX_LAYERS),
        n_heads=fields.integer("num_attention_heads", 8, high=_MAX_SIZE),
        channels=channels,
        # transformers flattens a quarter of the first convolution's channels, which must be a quarter of the bands
        n_mel=fields.integer("input_feat_size", max(1, channels[0] // 4 * 4)),
        kernel=fields.integer("conv_kernel_size", 5, high=_MAX_SIZE),
        output=fields.integer("output_proj_dims", 1536, high=_MAX_SIZE),
        is_clipped=fields.flag("use_clipped_linears", True),
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        chunk=fields.integer("attention_chunk_size", 12),
        left=fields.integer("attention_context_left", 13, low=0),
        right=fields.integer("attention_context_right", 0, low=0),
        logit_cap=fields.number("attention_logit_cap", 50.0),
        residual_weight=fields.number("residual_weight", 0.5),
        activation=fields.text("hidden_act", "silu"),
    )


def _read_channels(fields: Fields) -> tuple[int, int]:
    key = "subsampling_conv_channels"
    if key not in fields:
        return 128, 32
    sizes = fields.sequence(key)
    if len(sizes) != 2 or not all(type(size) is int and 1 <= size <= _MAX_SIZE for size in sizes):
        fields.fail(key, f"is {str(sizes)[:40]}, not two sizes in 1..{_MAX_SIZE}")
    return sizes[0], sizes[1]


def _read_frames(fields: Fields) -> AudioFrames:
    return AudioFrames(
        width=fields.integer("audio_embed_dim", 640, high=_MAX_SIZE),
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
    )
