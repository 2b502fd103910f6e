"""llama.cpp behind a seam: the only place of the package that imports llama_cpp.

Calibration and bench see arrays of tokens, activations and logits; how they come about is decided here.
"""
