"""Is a GGUF file what it should be? Tensors, metadata, tokenizer and template against the checkpoint's."""

from gemma4_quant.verification.findings import Finding, Part
from gemma4_quant.verification.judgement import TensorResult
from gemma4_quant.verification.verify_file import VerifyResult, verify

__all__ = ["Finding", "Part", "TensorResult", "VerifyResult", "verify"]
