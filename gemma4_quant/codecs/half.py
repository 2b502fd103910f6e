"""float16 in compiled code, by its bits: numba has no such type.

Rounding is to nearest, ties to even, as ggml's GGML_FP32_TO_FP16 does. Only integer operations and single additions
are used, so compiler flags of the caller cannot change a result.
"""

from typing import Any

import numpy as np

from gemma4_quant.compiled import compiled

LARGEST = 65504.0
"""Largest finite float16."""


@compiled()
def half_bits(value: np.float32) -> np.uint16:
    """Return the bits of the nearest float16; magnitudes from 65520 on become infinite."""
    bits = np.int64(np.float32(value).view(np.int32))
    sign = (bits >> 16) & 0x8000
    magnitude = bits & 0x7FFFFFFF
    if magnitude >= 0x47800000:  # 2**16 and above
        return np.uint16(sign | 0x7C00)
    if magnitude < 0x38800000:  # below 2**-14: adding 0.5 lets the addition round to 2**-24
        shifted = np.float32(np.int32(magnitude).view(np.float32) + np.float32(0.5))
        return np.uint16(sign | (np.int64(shifted.view(np.int32)) - 0x3F000000))
    odd = (magnitude >> 13) & 1
    return np.uint16(sign | ((magnitude - 0x38000000 + 0xFFF + odd) >> 13))


@compiled()
def half_value(bits: np.uint16) -> np.float32:
    """Return the value of a float16 given by its bits; exact."""
    wide = np.int64(bits)
    magnitude = (wide & 0x7FFF) << 13
    exponent = magnitude & 0x0F800000
    if exponent == 0x0F800000:  # infinite or NaN
        value = np.int32(magnitude + 0x70000000).view(np.float32)
    elif exponent == 0:  # zero or subnormal
        value = np.float32(np.int32(magnitude + 0x38800000).view(np.float32) - np.float32(6.103515625e-05))
    else:
        value = np.int32(magnitude + 0x38000000).view(np.float32)
    return -value if wide & 0x8000 else value


@compiled()
def rounded_to_half(value: np.float32) -> np.float32:
    """Round to the nearest float16 and back; finite values beyond the range become the largest float16."""
    limited = min(max(np.float32(value), np.float32(-65504.0)), np.float32(65504.0))
    return half_value(half_bits(limited))


@compiled()
def usable_half(value: np.float32) -> np.float32:
    """Round a scale to the nearest float16, to the smallest one where it would vanish though it is not zero."""
    d = rounded_to_half(value)
    if d == np.float32(0) and value != np.float32(0):
        d = np.float32(2.0**-24) if value > np.float32(0) else np.float32(-(2.0**-24))
    return d


@compiled()
def half_step(value: np.float32, steps: int) -> np.float32:
    """Return the float16 that lies `steps` values further from zero than `value`, nearer if steps is negative."""
    bits = np.int64(half_bits(value))
    magnitude: Any = min(max((bits & 0x7FFF) + steps, 0), 0x7BFF)
    return half_value(np.uint16((bits & 0x8000) | magnitude))
