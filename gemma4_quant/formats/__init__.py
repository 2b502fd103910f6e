"""Files as they lie on the disk: safetensors checkpoints, GGUF, JSON; hostile until checked."""
