"""How far from its original a tensor of each type may be.

An honest quantization has an error that its type decides. Rows that were swapped, taken from elsewhere or
overwritten have nothing in common with the original and an error of about 1.4, empty ones of 1. Limits lie between:
one and a half to four times the largest error that ggml's and our quantizers made of bell-shaped, heavy-tailed,
outlier-ridden and column-scaled rows, with importance from none to a few columns a hundred thousand times above the
rest (benchmarks/verify_limits.py, docs/measurements.md), but never above what tells garbage. The typical error is
that of the middle one of all stretches of 256 weights: a few columns of great importance do not move it, so it tells
a tensor of another checkpoint from blocks that fit badly.
"""

from dataclasses import dataclass

from gemma4_quant.ggml import GgmlType

FLOAT_STEP = 2.0**-7
"""Relative error of one weight in a float type: cut off, not even rounded, to BF16's eight bits."""

FLOAT_FLOOR = 2.0**-24
"""Absolute error of one weight in a float type: the smallest number of F16."""

LEAST_STRETCHES = 64
"""Stretches that a tensor must have for its typical error and gain to mean something."""


@dataclass(frozen=True)
class Limit:
    """Limits of a tensor's error, as roots of squared error over squared weights.

    tensor: of the whole. typical: of the middle stretch. row: of each row. stretch: of each 256 weights in a row.
    likeness: least cosine of the most similar stretch in each row. least_gain, most_gain: of Σ x·w / Σ x² with x
    decoded, w original. floor: absolute error of a weight that is never a fault.
    """

    tensor: float
    typical: float
    row: float
    stretch: float
    likeness: float
    least_gain: float
    most_gain: float
    floor: float


# Scales in float16 are off by up to 2⁻²⁵ when they are small. They are multiplied by codes of up to 128, and those of
# super-blocks by scales of 6 to 8 bits too.
_BLOCK, _SUPER_BLOCK = 128 * 2.0**-25, 4096 * 2.0**-25
_SMALL_FLOAT = 2.0**-9  # the smallest scale of NVFP4, UE4M3

_LIKENESS = 0.3
"""Independent rows have cosines of 0 ± 0.06 in 256 weights, honest quantizations of one bit 0.7 and more."""

_NEVER = 1e6
"""A limit that no error reaches: the worst honest rows below four bits are as bad as garbage, but not all through."""


def _fine(tensor: float, typical: float, gain: float, floor: float) -> Limit:
    """Make the limits of a type of four bits or more: no row is near emptiness, nor a part of one."""
    return Limit(tensor, typical, 0.9, 0.97, _LIKENESS, 1 - gain, 1 + gain, floor)


def _coarse(tensor: float, typical: float, least_gain: float, most_gain: float) -> Limit:
    """Make the limits of a type below four bits."""
    return Limit(tensor, typical, _NEVER, _NEVER, _LIKENESS, least_gain, most_gain, _SUPER_BLOCK)


_LIMITS: dict[GgmlType, Limit] = {
    GgmlType.Q8_0: _fine(0.20, 0.0145, 0.02, _BLOCK),
    GgmlType.Q6_K: _fine(0.30, 0.048, 0.05, _SUPER_BLOCK),
    GgmlType.Q5_K: _fine(0.40, 0.10, 0.06, _SUPER_BLOCK),
    GgmlType.Q5_1: _fine(0.40, 0.10, 0.06, _BLOCK),
    GgmlType.Q5_0: _fine(0.40, 0.17, 0.12, _BLOCK),
    GgmlType.Q4_K: _fine(0.50, 0.21, 0.10, _SUPER_BLOCK),
    GgmlType.Q4_1: _fine(0.50, 0.21, 0.10, _BLOCK),
    GgmlType.Q4_0: _fine(0.50, 0.28, 0.12, _BLOCK),
    GgmlType.IQ4_NL: _fine(0.50, 0.21, 0.10, _BLOCK),
    GgmlType.IQ4_XS: _fine(0.50, 0.21, 0.10, _SUPER_BLOCK),
    GgmlType.MXFP4: _fine(0.55, 0.30, 0.12, _BLOCK),
    GgmlType.NVFP4: _fine(0.50, 0.24, 0.10, _SMALL_FLOAT),
    GgmlType.Q3_K: _coarse(0.70, 0.43, 0.85, 1.15),
    GgmlType.IQ3_S: _coarse(0.75, 0.40, 0.75, 1.15),
    GgmlType.IQ3_XXS: _coarse(0.75, 0.46, 0.75, 1.15),
    GgmlType.Q2_K: _coarse(0.85, 0.65, 0.75, 1.15),
    GgmlType.IQ2_S: _coarse(0.95, 0.67, 0.55, 1.20),
    GgmlType.IQ2_XS: _coarse(0.95, 0.70, 0.55, 1.20),
    GgmlType.Q1_0: _coarse(1.50, 0.97, 0.35, 1.20),
}

# IQ2_XXS and what has fewer bits, and types that do not exist yet.
_COARSEST = _coarse(0.97, 0.97, 0.45, 1.20)


def limit_of(kind: GgmlType) -> Limit:
    """Return the limits of a block type."""
    return _LIMITS.get(kind, _COARSEST)
