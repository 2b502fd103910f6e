"""Which class names in config.json this package converts, and how each differs from the common Gemma 4 decoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gemma4_quant.converters.text_config import Defaults
from gemma4_quant.errors import ConfigError
from gemma4_quant.formats.json_input import kind_of


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint.

    has_suppressed_tokens: generation_config.json may name tokens never to produce. backbone_width: for drafters, how
    wide the target model is when the config does not say; None for models that stand alone.
    """

    defaults: Defaults
    has_suppressed_tokens: bool = False
    backbone_width: int | None = None


GEMMA4 = Family(Defaults())

# The unified config classes have no per-layer embeddings, and a longer context and window by default.
UNIFIED = Family(Defaults(context_length=262_144, window=1024, per_layer_width=0), has_suppressed_tokens=True)

# Widths of the default targets, E2B and 12B.
DRAFTER = Family(Defaults(per_layer_width=0, shares_all_layers=True), backbone_width=1536)
UNIFIED_DRAFTER = Family(replace(UNIFIED.defaults, shares_all_layers=True), backbone_width=3840)

FAMILIES: Mapping[str, Family] = {
    "Gemma4ForCausalLM": GEMMA4,
    "Gemma4ForConditionalGeneration": GEMMA4,
    "Gemma4UnifiedForCausalLM": UNIFIED,
    "Gemma4UnifiedForConditionalGeneration": UNIFIED,
    "Gemma4TextModel": GEMMA4,
    "Gemma4Model": GEMMA4,
    "Gemma4UnifiedTextModel": UNIFIED,
    "Gemma4UnifiedModel": UNIFIED,
    "Gemma4AssistantForCausalLM": DRAFTER,
    "Gemma4UnifiedAssistantForCausalLM": UNIFIED_DRAFTER,
}
"""Names that `architectures` may hold; those without a head have all that a model with tied embeddings needs."""

_MODEL_TYPES: Mapping[str, Family] = {
    "gemma4": GEMMA4,
    "gemma4_text": GEMMA4,
    "gemma4_unified": UNIFIED,
    "gemma4_unified_text": UNIFIED,
    "gemma4_assistant": DRAFTER,
    "gemma4_unified_assistant": UNIFIED_DRAFTER,
}
"""Names of `model_type`, for configs saved without `architectures`."""


def find_family(config: Mapping[str, Any]) -> Family:
    """Return the family of a checkpoint; raises ConfigError naming what config.json says and what is supported."""
    text_config = config.get("text_config")
    for part in (text_config, config):  # as llama.cpp's converter: the inner name wins
        if isinstance(part, Mapping) and part.get("architectures"):
            return _by_name(part["architectures"])
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in _MODEL_TYPES:
        return _MODEL_TYPES[model_type]
    raise ConfigError(f"config.json has no architectures; this tool converts {', '.join(FAMILIES)}")


def _by_name(names: Any) -> Family:
    if not isinstance(names, Sequence) or isinstance(names, str) or not isinstance(names[0], str):
        raise ConfigError(f"config.json: architectures is {kind_of(names)}, not a list of class names")
    if names[0] not in FAMILIES:
        raise ConfigError(
            f"config.json describes a {names[0][:80]}, which this tool does not convert; "
            f"it converts {', '.join(FAMILIES)}"
        )
    return FAMILIES[names[0]]
