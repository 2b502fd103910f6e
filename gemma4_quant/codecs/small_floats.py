"""Scales of blocks as formats store them: float16, E8M0 (MXFP4) and UE4M3 (NVFP4), by their values in float32.

E8M0 and UE4M3 hold half of what they say, since the codes they scale stand for twice their value (grids.Fp4Values):
ggml_e8m0_to_fp32_half and ggml_ue4m3_to_fp32 in ggml-impl.h.
"""

from typing import Any

import numpy as np

from gemma4_quant.codecs.half import half_bits, half_step, half_value, rounded_to_half
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled

HALF, E8M0, UE4M3 = 0, 1, 2

_LAST_E8M0 = 254  # 255 is NaN
_LAST_UE4M3 = 126  # 127 is NaN


@compiled()
def scale_near(value: np.float32, steps: int, form: int) -> np.float32:
    """Return the representable scale `steps` values above the nearest one (for E8M0: the one not above)."""
    if form == HALF:
        return half_step(rounded_to_half(value), steps)
    if form == E8M0:
        return _e8m0_value(min(max(_e8m0_code(value) + steps, 0), _LAST_E8M0))
    return _ue4m3_value(min(max(_ue4m3_code(value) + steps, 0), _LAST_UE4M3))


@compiled()
def put_scale(value: np.float32, form: int, target: Array) -> None:
    """Write a representable scale: float16 to target[0:2], the others to target[0]."""
    if form == HALF:
        bits = half_bits(value)
        target[0] = np.uint8(bits & np.uint16(0xFF))
        target[1] = np.uint8(bits >> np.uint16(8))
    elif form == E8M0:
        target[0] = np.uint8(_e8m0_code(value))
    else:
        target[0] = np.uint8(_ue4m3_code(value))


@compiled()
def get_scale(source: Array, form: int) -> np.float32:
    """Read what put_scale wrote."""
    if form == HALF:
        return half_value(np.uint16(source[0]) | (np.uint16(source[1]) << np.uint16(8)))
    if form == E8M0:
        return _e8m0_value(np.int64(source[0]))
    return _ue4m3_value(np.int64(source[0]))


@compiled()
def _e8m0_code(value: np.float32) -> Any:
    """Return the code of the largest power of two not above a value; 0, the smallest, also for zero."""
    bits = np.int64(np.float32(value).view(np.int32))
    if bits < 0x00800000:  # subnormal: 2**-127 and 2**-128 are codes 1 and 0
        return np.int64(bits >= 0x00400000)
    return min((bits >> 23) + 1, _LAST_E8M0)


@compiled()
def _e8m0_value(code: Any) -> np.float32:
    bits = (code - 1) << 23 if code >= 2 else 0x00200000 << code
    return np.int32(bits).view(np.float32)


@compiled()
def _ue4m3_code(value: np.float32) -> Any:
    """Return the code of the nearest value; beyond the largest, the largest."""
    whole = np.float32(value) * np.float32(2)
    if not whole >= np.float32(2.0**-6):  # subnormal, in steps of 2**-9
        return np.int64(np.rint(max(whole, np.float32(0)) * np.float32(512)))
    bits = np.int64(np.float32(whole).view(np.int32))
    odd = (bits >> 20) & 1
    return min(((bits + 0x7FFFF + odd) >> 20) - (120 << 3), _LAST_UE4M3)


@compiled()
def _ue4m3_value(code: Any) -> np.float32:
    if code == 0x7F:  # NaN, which ggml reads as zero
        return np.float32(0)
    code &= 0x7F  # a sign is no part of the format
    if code < 8:
        return np.float32(code) * np.float32(2.0**-10)
    return np.int32((code + (119 << 3)) << 20).view(np.float32)
