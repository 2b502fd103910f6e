"""Gemma 4 projectors: vision and audio encoders → a GGUF of architecture `clip`, which llama.cpp's mtmd loads."""

from gemma4_quant.converters.projector.clipped import is_limit
from gemma4_quant.converters.projector.config import has_encoders
from gemma4_quant.converters.projector.convert_projector import Projector, load_projector, open_projector

__all__ = ["Projector", "has_encoders", "is_limit", "load_projector", "open_projector"]
