"""Error feedback: encoding a matrix so that its columns make up for each other's errors, given E[x xᵀ] of its inputs.

Same formats, same bytes, same speed of the file as with the encoders that know E[x²] only.
"""

from gemma4_quant.codecs.feedback.encode import (
    FEEDBACK_TYPES,
    ROWS_AT_ONCE,
    FeedbackResult,
    compile_feedback_kernels,
    encode_with_feedback,
)
from gemma4_quant.codecs.feedback.factor import FeedbackFactor, prepare_factor
from gemma4_quant.codecs.feedback.target import corrected_rows

__all__ = [
    "FEEDBACK_TYPES",
    "ROWS_AT_ONCE",
    "FeedbackFactor",
    "FeedbackResult",
    "compile_feedback_kernels",
    "corrected_rows",
    "encode_with_feedback",
    "prepare_factor",
]
