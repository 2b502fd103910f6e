"""Layouts of super-blocks: where Q2_K to Q6_K and IQ4_XS keep codes and sub-scales (ggml-common.h).

Codes are int8, in the order of the weights. Sub-scales (and sub-minima) are whole numbers in any type.
"""

import numpy as np

from gemma4_quant.codecs.lanes import Array
from gemma4_quant.codecs.packing import (
    IQ4_CODES,
    IQ4_INDEX,
    add_planes,
    add_twos,
    pack_fours,
    pack_planes,
    pack_twos,
    translate,
    unpack_fours,
)
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_Q2_K, _Q3_K, _Q5_K, _Q6_K = int(GgmlType.Q2_K), int(GgmlType.Q3_K), int(GgmlType.Q5_K), int(GgmlType.Q6_K)


@compiled()
def super_scale_at(kind: int) -> int:
    """Return where in a block without minima its float16 super-scale stands."""
    if kind == _Q6_K:
        return 208
    return 108 if kind == _Q3_K else 0


@compiled()
def pack_symmetric(kind: int, codes: Array, sub_scales: Array, block: Array) -> None:
    """Write a super-block of Q6_K, Q3_K or IQ4_XS except its super-scale; codes may be used up."""
    if kind == _Q6_K:
        _pack_q6_k(codes, sub_scales, block)
    elif kind == _Q3_K:
        pack_planes(codes, 4, 2, block)
        pack_twos(codes, 4, 0, block[32:])
        _pack_q3_k_scales(sub_scales, block[96:])
    else:
        _pack_iq4_xs(codes, sub_scales, block)


@compiled()
def unpack_symmetric(kind: int, block: Array, codes: Array, sub_scales: Array) -> None:
    """Read what pack_symmetric wrote."""
    if kind == _Q6_K:
        _unpack_q6_k(block, codes, sub_scales)
    elif kind == _Q3_K:
        codes[:] = -4
        add_planes(block, 2, codes)
        add_twos(block[32:], 0, codes)
        for j in range(16):
            low = (np.int32(block[96 + j % 8]) >> (4 * (j // 8))) & 15
            high = (np.int32(block[104 + j % 4]) >> (2 * (j // 4))) & 3
            sub_scales[j] = (low | (high << 4)) - 32
    else:
        high = np.int32(block[2]) | (np.int32(block[3]) << 8)
        for j in range(8):
            low = (np.int32(block[4 + j // 2]) >> (4 * (j % 2))) & 15
            sub_scales[j] = (low | (((high >> (2 * j)) & 3) << 4)) - 32
            unpack_fours(block[8 + j * 16 :], 0, codes[j * 32 : (j + 1) * 32])
        translate(codes, IQ4_CODES)


@compiled()
def _pack_q6_k(codes: Array, sub_scales: Array, block: Array) -> None:
    """128 bytes of low fours, 64 of high twos, sixteen int8 sub-scales."""
    for half in range(2):
        for i in range(32):
            c = half * 128 + i
            q1, q2, q3, q4 = codes[c] + 32, codes[c + 32] + 32, codes[c + 64] + 32, codes[c + 96] + 32
            block[half * 64 + i] = np.uint8((q1 & 15) | ((q3 & 15) << 4))
            block[half * 64 + 32 + i] = np.uint8((q2 & 15) | ((q4 & 15) << 4))
    pack_twos(codes, 32, 4, block[128:])
    for j in range(16):
        block[192 + j] = np.uint8(np.int8(sub_scales[j]))


@compiled()
def _unpack_q6_k(block: Array, codes: Array, sub_scales: Array) -> None:
    for half in range(2):
        for i in range(64):
            byte = np.int32(block[half * 64 + i])
            codes[half * 128 + i] = np.int8((byte & 15) - 32)
            codes[half * 128 + 64 + i] = np.int8((byte >> 4) - 32)
    add_twos(block[128:], 4, codes)
    for j in range(16):
        sub_scales[j] = np.int8(block[192 + j])


@compiled()
def _pack_q3_k_scales(sub_scales: Array, target: Array) -> None:
    """Twelve bytes: low fours of sub-scales j and j + 8, then their high twos, four to a byte."""
    for j in range(8):
        first, second = np.int32(sub_scales[j]) + 32, np.int32(sub_scales[j + 8]) + 32
        target[j] = np.uint8((first & 15) | ((second & 15) << 4))
    for j in range(4):
        bits = np.int32(0)
        for part in range(4):
            bits |= ((np.int32(sub_scales[part * 4 + j]) + 32) >> 4) << (2 * part)
        target[8 + j] = np.uint8(bits)


@compiled()
def _pack_iq4_xs(codes: Array, sub_scales: Array, block: Array) -> None:
    """After the super-scale: high twos and low fours of eight sub-scales, codes."""
    high = np.int32(0)
    for j in range(8):
        high |= ((np.int32(sub_scales[j]) + 32) >> 4) << (2 * j)
    block[2], block[3] = np.uint8(high & 255), np.uint8(high >> 8)
    translate(codes, IQ4_INDEX)
    for j in range(4):
        first, second = np.int32(sub_scales[2 * j]) + 32, np.int32(sub_scales[2 * j + 1]) + 32
        block[4 + j] = np.uint8((first & 15) | ((second & 15) << 4))
    for j in range(8):
        pack_fours(codes[j * 32 : (j + 1) * 32], 0, block[8 + j * 16 :])


@compiled()
def super_scales_at(kind: int) -> int:
    """Return where in a block with minima its super-scale and super-minimum, two float16, stand."""
    return 80 if kind == _Q2_K else 0


@compiled()
def pack_minimum(kind: int, codes: Array, scales: Array, minima: Array, block: Array) -> None:
    """Write a super-block of Q2_K, Q4_K or Q5_K except its super-scales."""
    if kind == _Q2_K:
        for j in range(16):
            block[j] = np.uint8(np.int32(scales[j]) | (np.int32(minima[j]) << 4))
        pack_twos(codes, 0, 0, block[16:])
        return
    for j in range(4):
        s_low, s_high = np.int32(scales[j]), np.int32(scales[j + 4])
        m_low, m_high = np.int32(minima[j]), np.int32(minima[j + 4])
        block[4 + j] = np.uint8(s_low | ((s_high >> 4) << 6))
        block[8 + j] = np.uint8(m_low | ((m_high >> 4) << 6))
        block[12 + j] = np.uint8((s_high & 15) | ((m_high & 15) << 4))
    fours_at = 48 if kind == _Q5_K else 16
    for pair in range(4):
        pack_fours(codes[pair * 64 : (pair + 1) * 64], 0, block[fours_at + pair * 32 :])
    if kind == _Q5_K:
        pack_planes(codes, 0, 4, block[16:])


@compiled()
def unpack_minimum(kind: int, block: Array, codes: Array, scales: Array, minima: Array) -> None:
    """Read what pack_minimum wrote."""
    if kind == _Q2_K:
        codes[:] = 0
        add_twos(block[16:], 0, codes)
        for j in range(16):
            scales[j], minima[j] = block[j] & 15, block[j] >> 4
        return
    for j in range(4):
        scales[j], minima[j] = block[4 + j] & 63, block[8 + j] & 63
        scales[j + 4] = (block[12 + j] & 15) | ((block[4 + j] >> 6) << 4)
        minima[j + 4] = (block[12 + j] >> 4) | ((block[8 + j] >> 6) << 4)
    fours_at = 48 if kind == _Q5_K else 16
    for pair in range(4):
        unpack_fours(block[fours_at + pair * 32 :], 0, codes[pair * 64 : (pair + 1) * 64])
    if kind == _Q5_K:
        add_planes(block[16:], 4, codes)
