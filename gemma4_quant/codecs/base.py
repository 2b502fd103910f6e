"""What a codec is: a pure function from float32 rows to the bytes GGUF stores, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.ggml import GgmlType


class Effort(Enum):
    """How long an encoder searches.

    PLAIN: what the format's reference converter does (one rounding, no search); needed for files that must
    equal llama.cpp's byte for byte, and meaningless for K types, which treat it as FAST.
    FAST, BALANCED, BEST: ever wider searches for the least weighted squared error.
    """

    PLAIN = "plain"
    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


Encode = Callable[[Float32Rows, Float32Row | None, Effort], ByteRows]
Decode = Callable[[ByteRows, int], Float32Rows]


@dataclass(frozen=True)
class Codec:
    """Encoder and decoder of one tensor type.

    encode(rows, importance, effort): rows (n_rows, n_cols) float32; importance (n_cols,) float32, mean squared
    activation of each input column, uniform when None. Returns (n_rows, row_bytes) uint8. Raises ShapeError when a
    row is not whole blocks or importance has another length, NonFiniteError when a weight or importance is not
    finite or importance is negative.
    decode(data, n_cols): the inverse, (n_rows, row_bytes) uint8 to (n_rows, n_cols) float32.
    Both release the GIL for the bulk of their work, so that tiles run on all cores.
    """

    type: GgmlType
    encode: Encode
    decode: Decode
