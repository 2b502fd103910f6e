"""The sets of codes that block formats round to, and the code nearest to a scaled weight.

Compiled code takes a grid as an argument; its class decides, at compile time, how `nearest` rounds.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from gemma4_quant.codecs.vectors import VectorType, larger, less, nearest_whole, smaller, spread, where
from gemma4_quant.compiled import compiled


class Uniform(NamedTuple):
    """All whole numbers from low to high."""

    low: np.float32
    high: np.float32


class Iq4Values(NamedTuple):
    """The sixteen values of IQ4_NL and IQ4_XS (kvalues_iq4nl in ggml-common.h), denser around zero."""

    low: np.float32
    high: np.float32


class Fp4Values(NamedTuple):
    """Twice the values of E2M1, the 4-bit float of MXFP4 and NVFP4 (kvalues_mxfp4): ±0, 1, 2, 3, 4, 6, 8, 12."""

    low: np.float32
    high: np.float32


class Signs(NamedTuple):
    """-1 and 1, without zero."""

    low: np.float32
    high: np.float32


Grid = Uniform | Iq4Values | Fp4Values | Signs

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def uniform(low: int, high: int) -> Uniform:
    """Return the grid of all whole numbers from low to high."""
    return Uniform(np.float32(low), np.float32(high))


IQ4 = Iq4Values(IQ4_VALUES[0], IQ4_VALUES[-1])
FP4 = Fp4Values(np.float32(-12), np.float32(12))
SIGNS = Signs(np.float32(-1), np.float32(1))


def nearest(value: Any, grid: Grid) -> Any:
    """Return the code of the grid, as float32, nearest to a weight divided by its scale."""
    for kind, rounding in _ROUNDING.items():
        if isinstance(grid, kind):
            return rounding(value, grid)
    raise TypeError(f"{grid} is not a grid")


def _nearest_whole(value: Any, grid: Any) -> Any:
    return min(max(np.rint(value), grid.low), grid.high)


def _nearest_iq4(value: Any, grid: Any) -> Any:
    # a sum over the midpoints passed: comparisons become vector instructions, a search in a table would not
    code = grid.low
    code += np.float32(23) if value > np.float32(-115.5) else np.float32(0)
    code += np.float32(21) if value > np.float32(-93.5) else np.float32(0)
    code += np.float32(18) if value > np.float32(-74) else np.float32(0)
    code += np.float32(16) if value > np.float32(-57) else np.float32(0)
    code += np.float32(14) if value > np.float32(-42) else np.float32(0)
    code += np.float32(13) if value > np.float32(-28.5) else np.float32(0)
    code += np.float32(12) if value > np.float32(-16) else np.float32(0)
    code += np.float32(11) if value > np.float32(-4.5) else np.float32(0)
    code += np.float32(12) if value > np.float32(7) else np.float32(0)
    code += np.float32(12) if value > np.float32(19) else np.float32(0)
    code += np.float32(13) if value > np.float32(31.5) else np.float32(0)
    code += np.float32(15) if value > np.float32(45.5) else np.float32(0)
    code += np.float32(16) if value > np.float32(61) else np.float32(0)
    code += np.float32(20) if value > np.float32(79) else np.float32(0)
    code += np.float32(24) if value > np.float32(101) else np.float32(0)
    return code


def _nearest_fp4(value: Any, grid: Any) -> Any:
    size = min(abs(value), grid.high)
    # steps of 1 up to 4, of 2 up to 8, of 4 up to 12
    step = np.float32(1) if size < np.float32(4) else np.float32(2) if size < np.float32(8) else np.float32(4)
    inverse = np.float32(1) if size < np.float32(4) else np.float32(0.5) if size < np.float32(8) else np.float32(0.25)
    code = np.rint(size * inverse) * step
    return code if value >= np.float32(0) else -code


def _nearest_sign(value: Any, grid: Any) -> Any:
    return grid.high if value >= np.float32(0) else grid.low


_ROUNDING = {Uniform: _nearest_whole, Iq4Values: _nearest_iq4, Fp4Values: _nearest_fp4, Signs: _nearest_sign}


def _vector_nearest_whole(value: Any, grid: Any) -> Any:
    return smaller(larger(nearest_whole(value), spread(grid.low)), spread(grid.high))


def _vector_nearest_iq4(value: Any, grid: Any) -> Any:
    # which of the sixteen values, bit by bit: each compares with a midpoint that the bits before it choose
    bit3 = less(spread(np.float32(-4.5)), value)
    bit2 = less(where(bit3, spread(np.float32(45.5)), spread(np.float32(-57))), value)
    bit1 = less(_pick(bit3, bit2, -93.5, -28.5, 19.0, 79.0), value)
    lower, upper = _pick(bit2, bit1, -115.5, -74.0, -42.0, -16.0), _pick(bit2, bit1, 7.0, 31.5, 61.0, 101.0)
    bit0 = less(where(bit3, upper, lower), value)
    lower = where(bit2, _pick(bit1, bit0, -49, -35, -22, -10), _pick(bit1, bit0, grid.low, -104, -83, -65))
    upper = where(bit2, _pick(bit1, bit0, 53, 69, 89, grid.high), _pick(bit1, bit0, 1, 13, 25, 38))
    return where(bit3, upper, lower)


@compiled(finite=True)
def _pick(high: Any, low: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Return one of four numbers by two bits, a for none set, b for `low` alone."""
    without = where(low, spread(np.float32(b)), spread(np.float32(a)))
    return where(high, where(low, spread(np.float32(d)), spread(np.float32(c))), without)


def _vector_nearest_fp4(value: Any, grid: Any) -> Any:
    zero, one, two, four = spread(np.float32(0)), spread(np.float32(1)), spread(np.float32(2)), spread(np.float32(4))
    size = smaller(larger(value, zero - value), spread(grid.high))
    is_small, is_middle = less(size, four), less(size, spread(np.float32(8)))
    step = where(is_small, one, where(is_middle, two, four))
    inverse = where(is_small, one, where(is_middle, spread(np.float32(0.5)), spread(np.float32(0.25))))
    code = nearest_whole(size * inverse) * step
    return where(less(value, zero), zero - code, code)


def _vector_nearest_sign(value: Any, grid: Any) -> Any:
    return where(less(value, spread(np.float32(0))), spread(grid.low), spread(grid.high))


_VECTOR_ROUNDING = {
    Uniform: _vector_nearest_whole,
    Iq4Values: _vector_nearest_iq4,
    Fp4Values: _vector_nearest_fp4,
    Signs: _vector_nearest_sign,
}


def _nearest_for(value: Any, grid: Any) -> Any:
    """Return the rounding to compile for numba's types of a value and a grid."""
    if not isinstance(grid, types.BaseNamedTuple):
        return None
    return (_VECTOR_ROUNDING if isinstance(value, VectorType) else _ROUNDING).get(grid.instance_class)


overload(nearest, jit_options={"fastmath": {"nnan", "ninf", "nsz"}})(_nearest_for)
