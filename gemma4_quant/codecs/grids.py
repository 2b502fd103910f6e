"""The sets of codes that block formats round to, and the code nearest to a scaled weight.

Compiled code takes a grid as an argument; its class decides, at compile time, how `nearest` rounds.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload


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


def _nearest_for(value: Any, grid: Any) -> Any:
    """Return the rounding to compile for numba's type of a grid."""
    del value
    return _ROUNDING.get(grid.instance_class) if isinstance(grid, types.BaseNamedTuple) else None


overload(nearest, jit_options={"fastmath": {"nnan", "ninf", "nsz"}})(_nearest_for)
