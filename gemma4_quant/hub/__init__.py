"""Checkpoints by Hub id: what is needed of them, in the cache of huggingface_hub."""
