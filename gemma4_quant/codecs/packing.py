"""Putting codes into bytes, the parts that several block layouts share (ggml-common.h)."""

import numpy as np

from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled


@compiled()
def put_half(bits: np.uint16, target: Array) -> None:
    """Write a float16, little-endian, to target[0:2]."""
    target[0] = np.uint8(bits & np.uint16(0xFF))
    target[1] = np.uint8(bits >> np.uint16(8))


@compiled()
def pack_fours(codes: Array, lane: int, add: int, target: Array) -> None:
    """Write the low four bits of 32 codes + add to target[0:16]: code i below, code i + 16 above."""
    for i in range(16):
        low = (codes[i, lane] + add) & 15
        high = (codes[i + 16, lane] + add) & 15
        target[i] = np.uint8(low | (high << 4))


@compiled()
def pack_high_bits(codes: Array, lane: int, add: int, target: Array) -> None:
    """Write the fifth bits of 32 codes + add to target[0:4], code i at bit i."""
    for byte in range(4):
        bits = 0
        for i in range(8):
            bits |= (((codes[byte * 8 + i, lane] + add) >> 4) & 1) << i
        target[byte] = np.uint8(bits)
