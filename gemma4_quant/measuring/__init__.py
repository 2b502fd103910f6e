"""Numbers about models: perplexity, divergence, tokens per second."""
