"""From an opened checkpoint to the Model of its projector, which the pipeline encodes and writes."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemma4_quant.converters.authorship import general_metadata
from gemma4_quant.converters.convert_checkpoint import QUANTIZATION_VERSION
from gemma4_quant.converters.float_types import auto_type
from gemma4_quant.converters.places import Drop, Place, place_tensors
from gemma4_quant.converters.projector.audio import conformer_places, frame_places
from gemma4_quant.converters.projector.clipped import LIMIT_NAME
from gemma4_quant.converters.projector.config import (
    AudioFrames,
    Conformer,
    PatchEmbedder,
    ProjectorConfig,
    VisionTower,
    read_projector_config,
)
from gemma4_quant.converters.projector.metadata import ARCHITECTURE, encoder_metadata
from gemma4_quant.converters.projector.pictures import PictureStatistics, read_picture_statistics
from gemma4_quant.converters.projector.runnable import check_encoders, differences
from gemma4_quant.converters.projector.vision import embedder_places, tower_places
from gemma4_quant.formats.checkpoint import Checkpoint, open_checkpoint
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.metadata import uint32
from gemma4_quant.model import Model

logger = logging.getLogger(__name__)

DROPS = (
    Drop(re.compile(r"(?:^|\.)language_model\.|^lm_head\."), "the text decoder goes into the model file"),
    Drop(
        re.compile(r"^(?:model\.)?(?:layers|embed_tokens\w*|norm|per_layer_\w+)\."),
        "the text decoder goes into the model file",
    ),
    Drop(re.compile(r"\.rotary_emb\.(?:original_)?inv_freq$"), "llama.cpp computes the RoPE frequencies"),
    Drop(re.compile(r"audio_tower\..*\.(?:inv_timescales|softcap)$"), "llama.cpp computes it"),
)


@dataclass(frozen=True)
class Projector:
    """A projector before it is written. remarks: what a user should know of it, beside what the file says."""

    model: Model
    remarks: tuple[str, ...]


def load_projector(directory: Path, *, model_name: str | None = None) -> Model:
    """Open the checkpoint in `directory` and convert its projector; see open_projector, whose remarks are logged."""
    projector = open_projector(open_checkpoint(directory), model_name=model_name)
    for remark in projector.remarks:
        logger.warning("%s", remark)
    return projector.model


def open_projector(checkpoint: Checkpoint, *, model_name: str | None = None, exact_gelu: bool = False) -> Projector:
    """Give the tensors and settings of a checkpoint's encoders their GGUF names; no weight is read.

    model_name: `general.name`, guessed from model card and directory when None. exact_gelu: have llama.cpp compute
    the vision tower's activation as the model does, which its own converter's files do not.
    Tensors keep the types they are stored in, but for small ones that GGUF holds in another form. Raises ConfigError
    for a model without encoders or with ones that llama.cpp would abort on, UnmappedTensorsError listing tensors
    without a place and missing ones, CheckpointError for wrong shapes.
    """
    config = read_projector_config(checkpoint.config)
    check_encoders(config)
    pictures = read_picture_statistics(checkpoint)
    drops = (*DROPS, *_unused_drops(config))
    tensors = place_tensors(checkpoint.tensors, _places(config), drops, ARCHITECTURE)
    file_type = FileType[auto_type(Model(checkpoint.directory, {}, tensors), GgmlType.BF16).name]
    metadata = {
        **general_metadata(checkpoint, tensors, model_name, ARCHITECTURE, "mmproj"),
        **encoder_metadata(config, pictures, uint32(file_type), exact_gelu=exact_gelu),
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
    }
    remarks = (*differences(config), *_picture_remarks(config, pictures))
    return Projector(Model(checkpoint.directory, metadata, tensors), remarks)


def _places(config: ProjectorConfig) -> Iterator[Place]:
    if isinstance(config.vision, VisionTower):
        yield from tower_places(config.vision, config.text_hidden)
    elif isinstance(config.vision, PatchEmbedder):
        yield from embedder_places(config.vision, config.text_hidden)
    if isinstance(config.audio, Conformer):
        yield from conformer_places(config.audio, config.text_hidden)
    elif isinstance(config.audio, AudioFrames):
        yield from frame_places(config.audio, config.text_hidden)


def _unused_drops(config: ProjectorConfig) -> Iterator[Drop]:
    """Yield drops of tensors that transformers has no use for under this config either."""
    for kind, encoder in (("vision", config.vision), ("audio", config.audio)):
        if isinstance(encoder, VisionTower | Conformer) and not encoder.is_clipped:
            unused = re.compile(rf"{kind}_tower\..*{LIMIT_NAME.pattern}")
            yield Drop(unused, f"{kind}_config.use_clipped_linears is false")
    if isinstance(config.vision, VisionTower) and not config.vision.is_standardized:
        yield Drop(re.compile(r"vision_tower\.std_(?:bias|scale)$"), "vision_config.standardize is false")


def _picture_remarks(config: ProjectorConfig, pictures: PictureStatistics) -> Iterator[str]:
    if config.vision is not None and pictures.source is None:
        yield (
            "neither processor_config.json nor preprocessor_config.json says how pictures are normalised; "
            "they are not, as transformers does by default"
        )
