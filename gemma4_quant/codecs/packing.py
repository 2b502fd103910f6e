"""Codes into bytes and back, the parts that several block layouts share (ggml-common.h).

Codes stand in an int8 array in the order of the weights; `add` makes them unsigned.
"""

import numpy as np

from gemma4_quant.codecs.grids import Grid, nearest
from gemma4_quant.codecs.half import half_value
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled


@compiled(finite=True)
def round_to_codes(row: Array, inverse: np.float32, grid: Grid, codes: Array) -> None:
    """Write the codes nearest to row · inverse, the weights of one block (n,) float32, to codes (n,) int8."""
    for i in range(codes.shape[0]):
        codes[i] = np.int8(nearest(row[i] * inverse, grid))


@compiled()
def put_half(bits: np.uint16, target: Array) -> None:
    """Write a float16, little-endian, to target[0:2]."""
    target[0] = np.uint8(bits & np.uint16(0xFF))
    target[1] = np.uint8(bits >> np.uint16(8))


@compiled()
def get_half(source: Array) -> np.float32:
    """Read a float16, little-endian, from source[0:2]."""
    return half_value(np.uint16(source[0]) | (np.uint16(source[1]) << np.uint16(8)))


@compiled()
def pack_fours(codes: Array, add: int, target: Array) -> None:
    """Write the low four bits of codes + add: of the first half below, of the second half above."""
    half = codes.shape[0] // 2
    for i in range(half):
        low = (codes[i] + add) & 15
        high = (codes[i + half] + add) & 15
        target[i] = np.uint8(low | (high << 4))


@compiled()
def unpack_fours(source: Array, codes: Array) -> None:
    """Read the fours that pack_fours wrote, 0 to 15."""
    half = codes.shape[0] // 2
    for i in range(half):
        codes[i] = np.int8(source[i] & 15)
        codes[i + half] = np.int8(source[i] >> 4)


@compiled()
def pack_fifths(codes: Array, add: int, target: Array) -> None:
    """Write the fifth bits of 32 codes + add to target[0:4], code i at bit i."""
    for byte in range(4):
        bits = 0
        for i in range(8):
            bits |= (((codes[byte * 8 + i] + add) >> 4) & 1) << i
        target[byte] = np.uint8(bits)


@compiled()
def add_fifths(source: Array, codes: Array) -> None:
    """Add to 32 codes the sixteens whose bits pack_fifths wrote."""
    for i in range(32):
        codes[i] += np.int8(((source[i // 8] >> (i % 8)) & 1) << 4)
