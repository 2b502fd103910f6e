"""Gemma 4 checkpoints → Model: tables of names and shapes, metadata, and the checks that both fit together."""

from gemma4_quant.converters.authorship import default_file_name
from gemma4_quant.converters.convert_checkpoint import convert_checkpoint, load_model, open_with_adapters
from gemma4_quant.converters.float_types import auto_type, float_type
from gemma4_quant.converters.projector import load_projector

__all__ = [
    "auto_type",
    "convert_checkpoint",
    "default_file_name",
    "float_type",
    "load_model",
    "load_projector",
    "open_with_adapters",
]
