"""Codes into bytes and back, the parts that several block layouts share (ggml-common.h).

Codes stand in an int8 array in the order of the weights; `add` makes them unsigned.
"""

import numpy as np

from gemma4_quant.codecs.grids import FP4_VALUES, IQ4_VALUES, Grid, nearest
from gemma4_quant.codecs.half import half_value
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled


def _indices(values: Array) -> Array:
    """Return a table from codes, as their low eight bits, to their places in a table of values."""
    table = np.zeros(256, np.uint8)
    for index in reversed(range(len(values))):  # of two zeros, the first
        table[int(values[index]) & 255] = index
    return table


IQ4_INDEX, FP4_INDEX = _indices(IQ4_VALUES), _indices(FP4_VALUES)
IQ4_CODES, FP4_CODES = IQ4_VALUES.astype(np.int8), FP4_VALUES.astype(np.int8)


@compiled(finite=True)
def round_to_codes(row: Array, inverse: np.float32, grid: Grid, codes: Array) -> None:
    """Write the codes nearest to row · inverse, the weights of one block (n,) float32, to codes (n,) int8."""
    for i in range(codes.shape[0]):
        codes[i] = np.int8(nearest(row[i] * inverse, grid))


@compiled()
def translate(codes: Array, table: Array) -> None:
    """Replace codes by what stands in a table at their low eight bits."""
    for i in range(codes.shape[0]):
        codes[i] = np.int8(table[codes[i] & 255])


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
def unpack_fours(source: Array, add: int, codes: Array) -> None:
    """Read the fours that pack_fours wrote, less `add`."""
    half = codes.shape[0] // 2
    for i in range(half):
        codes[i] = np.int8(np.int32(source[i] & 15) - add)
        codes[i + half] = np.int8(np.int32(source[i] >> 4) - add)


@compiled()
def pack_twos(codes: Array, add: int, shift: int, target: Array) -> None:
    """Write two bits, from `shift` up, of each code + add: 128 codes to 32 bytes, code i at bits 2·(i // 32)."""
    for group in range(codes.shape[0] // 128):
        for i in range(32):
            bits = 0
            for part in range(4):
                bits |= (((codes[group * 128 + part * 32 + i] + add) >> shift) & 3) << (2 * part)
            target[group * 32 + i] = np.uint8(bits)


@compiled()
def add_twos(source: Array, shift: int, codes: Array) -> None:
    """Add to codes the two bits, shifted up again, that pack_twos wrote."""
    for group in range(codes.shape[0] // 128):
        for i in range(32):
            bits = np.int32(source[group * 32 + i])
            for part in range(4):
                codes[group * 128 + part * 32 + i] += np.int8(((bits >> (2 * part)) & 3) << shift)


@compiled()
def pack_bits(codes: Array, add: int, shift: int, target: Array) -> None:
    """Write one bit, number `shift`, of each code + add: code i at bit i % 8 of byte i // 8."""
    for byte in range(codes.shape[0] // 8):
        bits = 0
        for i in range(8):
            bits |= (((codes[byte * 8 + i] + add) >> shift) & 1) << i
        target[byte] = np.uint8(bits)


@compiled()
def add_bits(source: Array, shift: int, codes: Array) -> None:
    """Add to codes the bits, shifted up again, that pack_bits wrote."""
    for i in range(codes.shape[0]):
        codes[i] += np.int8(((source[i // 8] >> (i % 8)) & 1) << shift)


@compiled()
def pack_planes(codes: Array, add: int, shift: int, target: Array) -> None:
    """Write one bit, number `shift`, of each of 256 codes + add: code i at bit i // 32 of byte i % 32."""
    for i in range(32):
        bits = 0
        for plane in range(8):
            bits |= (((codes[plane * 32 + i] + add) >> shift) & 1) << plane
        target[i] = np.uint8(bits)


@compiled()
def add_planes(source: Array, shift: int, codes: Array) -> None:
    """Add to 256 codes the bits, shifted up again, that pack_planes wrote."""
    for plane in range(8):
        for i in range(32):
            codes[plane * 32 + i] += np.int8(((source[i] >> plane) & 1) << shift)
