"""Chat templates, rendered as transformers does, under limits."""
