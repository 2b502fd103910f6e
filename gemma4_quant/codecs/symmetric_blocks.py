"""Layouts of the blocks whose codes share a scale without a minimum (block_q4_0 … block_tq1_0 in ggml-common.h)."""

import numpy as np

from gemma4_quant.codecs.lanes import Array
from gemma4_quant.codecs.packing import (
    FP4_CODES,
    FP4_INDEX,
    IQ4_CODES,
    IQ4_INDEX,
    add_bits,
    add_twos,
    pack_bits,
    pack_fours,
    pack_twos,
    translate,
    unpack_fours,
)
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType

_Q4_0, _Q5_0, _Q8_0 = int(GgmlType.Q4_0), int(GgmlType.Q5_0), int(GgmlType.Q8_0)
_IQ4_NL, _MXFP4, _NVFP4 = int(GgmlType.IQ4_NL), int(GgmlType.MXFP4), int(GgmlType.NVFP4)
_Q1_0, _Q2_0 = int(GgmlType.Q1_0), int(GgmlType.Q2_0)
_TQ1_0, _TQ2_0 = int(GgmlType.TQ1_0), int(GgmlType.TQ2_0)

# TQ1_0 holds five codes a byte in two groups, then four codes a byte: (first byte, bytes, first code, codes a byte).
_TRIT_GROUPS = ((0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4))
_POWERS_OF_3 = np.array([1, 3, 9, 27, 81], np.int64)


@compiled()
def scales_at(kind: int) -> int:
    """Return where in a block its scales begin."""
    if kind == _TQ1_0:
        return 52
    return 64 if kind == _TQ2_0 else 0


@compiled()
def pack_codes(kind: int, codes: Array, block: Array) -> None:
    """Write the codes of one block, int8, to their places in its bytes; codes may be used up."""
    if kind == _Q8_0:
        bytes_ = block[2:34]
        for i in range(32):
            bytes_[i] = codes[i]
    elif kind == _Q5_0:
        pack_bits(codes, 16, 4, block[2:])
        pack_fours(codes, 16, block[6:])
    elif kind == _Q4_0:
        pack_fours(codes, 8, block[2:])
    elif kind == _IQ4_NL:
        translate(codes, IQ4_INDEX)
        pack_fours(codes, 0, block[2:])
    elif kind == _MXFP4:
        translate(codes, FP4_INDEX)
        pack_fours(codes, 0, block[1:])
    elif kind == _NVFP4:
        translate(codes, FP4_INDEX)
        for j in range(4):
            pack_fours(codes[j * 16 : (j + 1) * 16], 0, block[4 + j * 8 :])
    else:
        _pack_few_bits(kind, codes, block)


@compiled()
def _pack_few_bits(kind: int, codes: Array, block: Array) -> None:
    if kind == _Q1_0:
        pack_bits(codes, 1, 1, block[2:])
    elif kind == _Q2_0:
        for i in range(16):
            c = codes[i * 4 : i * 4 + 4]
            block[2 + i] = np.uint8((c[0] + 1) | ((c[1] + 1) << 2) | ((c[2] + 1) << 4) | ((c[3] + 1) << 6))
    elif kind == _TQ2_0:
        pack_twos(codes, 1, 0, block)
    else:
        _pack_trits(codes, block)


@compiled()
def unpack_codes(kind: int, block: Array, codes: Array) -> None:
    """Read the codes of one block, as pack_codes wrote them."""
    if kind == _Q8_0:
        for i in range(32):
            codes[i] = np.int8(block[2 + i])
    elif kind == _Q5_0:
        unpack_fours(block[6:], 16, codes)
        add_bits(block[2:], 4, codes)
    elif kind == _Q4_0:
        unpack_fours(block[2:], 8, codes)
    elif kind == _IQ4_NL:
        unpack_fours(block[2:], 0, codes)
        translate(codes, IQ4_CODES)
    elif kind == _MXFP4:
        unpack_fours(block[1:], 0, codes)
        translate(codes, FP4_CODES)
    elif kind == _NVFP4:
        for j in range(4):
            unpack_fours(block[4 + j * 8 :], 0, codes[j * 16 : (j + 1) * 16])
        translate(codes, FP4_CODES)
    else:
        _unpack_few_bits(kind, block, codes)


@compiled()
def _unpack_few_bits(kind: int, block: Array, codes: Array) -> None:
    if kind == _Q1_0:
        codes[:] = -1
        add_bits(block[2:], 1, codes)
    elif kind == _Q2_0:
        for i in range(64):
            codes[i] = np.int8(((np.int32(block[2 + i // 4]) >> (2 * (i % 4))) & 3) - 1)
    elif kind == _TQ2_0:
        codes[:] = -1
        add_twos(block, 0, codes)
    else:
        _unpack_trits(block, codes)


@compiled()
def _pack_trits(codes: Array, block: Array) -> None:
    """Write ternary codes as the digits after the point of byte / 256, the first code as the first digit."""
    for at, n_bytes, first, n_digits in _TRIT_GROUPS:
        for i in range(n_bytes):
            number = np.int64(0)
            for digit in range(n_digits):
                number = number * 3 + codes[first + digit * n_bytes + i] + 1
            if n_digits == 4:
                number *= 3
            block[at + i] = np.uint8((number * 256 + 242) // 243)  # rounded up: decoding cuts off


@compiled()
def _unpack_trits(block: Array, codes: Array) -> None:
    for at, n_bytes, first, n_digits in _TRIT_GROUPS:
        for digit in range(n_digits):
            for i in range(n_bytes):
                shifted = (np.int64(block[at + i]) * _POWERS_OF_3[digit]) & 255
                codes[first + digit * n_bytes + i] = np.int8(((shifted * 3) >> 8) - 1)
