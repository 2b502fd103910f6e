"""Gemma 4 checkpoints to GGUF: convert, calibrate, quantize, and measure what came out."""
