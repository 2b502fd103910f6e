"""Finding NaN and infinities among stored floats, fast enough to look at every byte that is copied."""

from dataclasses import dataclass

import numpy as np

from gemma4_quant.arrays import ByteRows
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType, block_size

_WORD_BYTES = 8


@dataclass(frozen=True)
class _Exponent:
    """Where the exponent of a float is, repeated for all floats in 64 bits; all its bits are set in NaN and infinity.

    Adding one to the exponent then carries into the sign, which was masked away.
    """

    mask: np.uint64
    one: np.uint64
    carry: np.uint64


def _exponent(width: int, mask: int) -> _Exponent:
    """Describe floats of `width` bits."""
    repeat = sum(1 << at for at in range(0, 64, width))
    lowest = mask & -mask
    return _Exponent(np.uint64(mask * repeat), np.uint64(lowest * repeat), np.uint64(repeat << (width - 1)))


_EXPONENTS = {
    GgmlType.F64: _exponent(64, 0x7FF0000000000000),
    GgmlType.F32: _exponent(32, 0x7F800000),
    GgmlType.F16: _exponent(16, 0x7C00),
    GgmlType.BF16: _exponent(16, 0x7F80),
}


def first_not_finite(stored: ByteRows, kind: GgmlType) -> int | None:
    """Return the index of the first NaN or infinity among the floats in `stored`, uint8 of any shape, or None.

    None too when `kind` is no float type: blocks have their scales checked where they are made.
    """
    if kind not in _EXPONENTS:
        return None
    exponent = _EXPONENTS[kind]
    data = stored.reshape(-1)
    n_whole = data.size - data.size % _WORD_BYTES
    word = _first_carry(data[:n_whole].view(np.uint64), exponent.mask, exponent.one, exponent.carry)
    if word < 0 and n_whole == data.size:
        return None
    start = n_whole if word < 0 else word * _WORD_BYTES
    n_bytes = block_size(kind).n_bytes
    last = np.zeros(_WORD_BYTES, np.uint8)
    rest = data[start : start + _WORD_BYTES]
    last[: rest.size] = rest
    bits = int(last.view("<u8")[0])
    for i in range(_WORD_BYTES // n_bytes):
        one = int(exponent.mask) & ((1 << 8 * n_bytes) - 1)
        if bits >> (8 * n_bytes * i) & one == one:
            return start // n_bytes + i
    return None


@compiled()
def _first_carry(words: Array, mask: np.uint64, one: np.uint64, carry: np.uint64) -> int:
    """Return the index of the first word in which adding `one` to the masked bits carries, or -1."""
    found = np.uint64(0)
    for i in range(words.size):
        found |= ((words[i] & mask) + one) & carry
    if found == 0:
        return -1
    for i in range(words.size):
        if ((words[i] & mask) + one) & carry:
            return i
    return -1
