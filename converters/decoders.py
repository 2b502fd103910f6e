"""What a checkpoint's config makes of it: a text decoder or a drafter, as the GGUF that llama.cpp expects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma4_quant.converters import drafter, gemma4
from gemma4_quant.converters.attention_config import Shapes
from gemma4_quant.converters.drafter import drafter_parameters, drafter_places, read_backbone_width
from gemma4_quant.converters.families import Family, find_family
from gemma4_quant.converters.places import Drop, Place
from gemma4_quant.converters.runnable import check_runnable
from gemma4_quant.converters.text_config import TextConfig, read_text_config, text_fields
from gemma4_quant.formats.json_input import Fields
from gemma4_quant.metadata import Value


@dataclass(frozen=True)
class Decoder:
    """A decoder before its weights are looked at.

    backbone_width: the width of the target's hidden states for a drafter, None for a model that stands alone.
    """

    family: Family
    config: TextConfig
    backbone_width: int | None

    @property
    def architecture(self) -> str:
        """Value of `general.architecture`, and the prefix of its metadata."""
        return gemma4.ARCHITECTURE if self.backbone_width is None else drafter.ARCHITECTURE

    @property
    def drops(self) -> Sequence[Drop]:
        """Tensors of a checkpoint that its GGUF does not hold."""
        return gemma4.DROPS if self.backbone_width is None else (*gemma4.DROPS, *drafter.DROPS)

    def places(self, n_tokens: int) -> list[Place]:
        """Return where each tensor of a checkpoint goes; see gemma4.tensor_places."""
        if self.backbone_width is None:
            return list(gemma4.tensor_places(self.config, n_tokens))
        return list(drafter_places(self.config, n_tokens, self.backbone_width))

    def metadata(self, file_type: Value) -> dict[str, Value]:
        """Return the hyper-parameters; see gemma4.hyper_parameters."""
        common = gemma4.hyper_parameters(self.config, file_type, self.architecture)
        if self.backbone_width is None:
            return common
        return {**common, **drafter_parameters(self.config, self.backbone_width)}


def read_decoder(config: Mapping[str, Any], shapes: Shapes | None = None) -> Decoder:
    """Read config.json; raises ConfigError for what is not Gemma 4, impossible, or nothing llama.cpp can run.

    shapes: see read_text_config.
    """
    family = find_family(config)
    fields = text_fields(config)
    width = family.backbone_width
    if width is not None:
        width = read_backbone_width(Fields(config, "config.json"), width)
    text = read_text_config(fields, family.defaults, shapes)
    check_runnable(text, width)
    return Decoder(family, text, width)
