"""LoRA adapters as PEFT saves them: merged into a checkpoint, or as an adapter file for llama.cpp."""

from gemma4_quant.converters.lora.merge import merge_adapters
from gemma4_quant.converters.lora.peft_adapter import Adapter, open_adapter

__all__ = ["Adapter", "merge_adapters", "open_adapter"]
