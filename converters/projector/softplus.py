"""log(1 + eˣ) in float32 with the bits that PyTorch computes, and so llama.cpp's converter writes.

PyTorch's vector code takes exp and log1p from SLEEF (xexpf and xlog1pf in sleefsimdsp.c, within one unit in the last
place, where the exact value rounded to float32 would differ for every fifth input); polynomials and constants are
SLEEF's. A row whose length is no multiple of 16 ends in PyTorch's scalar code, whose last bit may be another.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[np.float32]
_DoubleFloat = tuple[_Array, _Array]
"""A sum of two float32, the second a correction to the first."""

_EXP = (0.00139304355252534151, 0.00833336077630519867, 0.0416664853692054749, 0.16666667163372039795, 0.5)
_EXP_FIRST = 0.000198527617612853646
_LN2_INVERSE = 1.442695040888963407
_LN2_LARGE, _LN2_SMALL = 0.693145751953125, 1.428606765330187045e-06
_LN2: tuple[float, float] = (0.69314718246459960938, -1.904654323148236017e-09)
_LOG1P = (0.3996108174, 0.6666694880)
_LOG1P_FIRST = 0.3027294874

_LARGEST = 20.0
"""Beyond, torch.nn.functional.softplus returns its input."""

_SMALLEST = -104.0
"""Below, eˣ is zero in float32."""


def softplus(values: _Array) -> _Array:
    """Return log(1 + eˣ) for each x, float32 of the same shape."""
    inside = np.clip(values, np.float32(_SMALLEST), np.float32(_LARGEST))
    result = np.where(values > _LARGEST, values, _log1p(_exp(inside)))
    return np.asarray(np.where(values < _SMALLEST, 0, result), np.float32)


def _exp(x: _Array) -> _Array:
    exponent = np.rint(x * np.float32(_LN2_INVERSE))
    rest = _fused(exponent, -_LN2_LARGE, x)
    rest = _fused(exponent, -_LN2_SMALL, rest)
    series = _polynomial(rest, _EXP_FIRST, _EXP)
    mantissa = np.float32(1) + _fused(rest * rest, series, rest)
    return np.asarray(np.ldexp(mantissa, exponent.astype(np.int32)), np.float32)


def _log1p(x: _Array) -> _Array:
    """Return log(1 + x) for x above zero, as e·log 2 + 2·artanh(m / (2 + m)) with 1 + x = (1 + m)·2ᵉ."""
    exponent = np.frexp((x + np.float32(1)) * np.float32(1 / 0.75))[1] - 1
    scale = np.ldexp(np.float32(1), -exponent).astype(np.float32)
    m = _fused(x, scale, scale - np.float32(1))
    two_plus_m = np.float32(2) + m
    quotient = _divided(m, (two_plus_m, (np.float32(2) - two_plus_m) + m))
    square = quotient[0] * quotient[0]
    series = _polynomial(square, _LOG1P_FIRST, _LOG1P)
    whole = exponent.astype(np.float32)
    high = whole * np.float32(_LN2[0])
    low = _fused(whole, _LN2[1], _fused(whole, _LN2[0], -high))
    doubled = quotient[0] * np.float32(2), quotient[1] * np.float32(2)
    total = _added(_added((high, low), doubled), (square * quotient[0] * series, np.zeros_like(m)))
    return total[0] + total[1]


def _polynomial(x: _Array, first: float, others: tuple[float, ...]) -> _Array:
    series: Any = np.full_like(x, np.float32(first))
    for coefficient in others:
        series = _fused(series, x, coefficient)
    return np.asarray(series, np.float32)


def _fused(a: Any, b: Any, c: Any) -> _Array:
    """Return a·b + c rounded once: float64 holds the product of two float32 exactly."""
    wide = [np.asarray(each, np.float32).astype(np.float64) for each in (a, b, c)]
    return np.asarray(wide[0] * wide[1] + wide[2], np.float32)


def _added(a: _DoubleFloat, b: _DoubleFloat) -> _DoubleFloat:
    total = a[0] + b[0]
    return total, ((a[0] - total) + b[0]) + a[1] + b[1]


def _divided(a: _Array, b: _DoubleFloat) -> _DoubleFloat:
    inverse = np.float32(1) / b[0]
    quotient = a * inverse
    correction = _fused(-b[1], inverse, _fused(-b[0], inverse, 1))
    return quotient, _fused(quotient, correction, _fused(inverse, a, -quotient))
