"""How far from its original a tensor of each type may be.

An honest quantization has an error that its type decides. Rows that were swapped, taken from elsewhere or
overwritten have one of about 1.4 (two independent rows), empty ones of 1. Limits lie between: 1.6 to 2 times the
largest error that ggml's and our quantizers made of bell-shaped, heavy-tailed, outlier-ridden and column-scaled rows,
with importance from none to a few columns a hundred thousand times above the rest (benchmarks/verify_limits.py,
docs/measurements.md), but never above what tells garbage. The typical error is that of the middle one of all
stretches of 256 weights: a few columns of great importance do not move it, so it tells a tensor of another checkpoint
from blocks that fit badly.
"""

from dataclasses import dataclass
from math import inf

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
    best_stretch: of the best stretch in each row. least_gain, most_gain: of Σ x·w / Σ x² with x decoded, w original.
    floor: absolute error of a weight that is never a fault.
    """

    tensor: float
    typical: float
    row: float
    stretch: float
    best_stretch: float
    least_gain: float
    most_gain: float
    floor: float


# Scales in float16 are off by up to 2⁻²⁵ when they are small. They are multiplied by codes of up to 128, and those of
# super-blocks by scales of 6 to 8 bits too.
_BLOCK, _SUPER_BLOCK = 128 * 2.0**-25, 4096 * 2.0**-25

_GARBAGE = 1.1
"""Best stretch of a row: 256 independent weights have 1.41 ± 0.06."""


def _fine(tensor: float, typical: float, gain: float, floor: float) -> Limit:
    """Make the limits of a type of four bits or more: no row is near emptiness, nor a part of one."""
    return Limit(tensor, typical, 0.9, 0.97, _GARBAGE, 1 - gain, 1 + gain, floor)


def _coarse(tensor: float, typical: float, least_gain: float, most_gain: float) -> Limit:
    """Make the limits of a type below four bits: the worst honest rows are as bad as garbage, but not all through."""
    return Limit(tensor, typical, inf, inf, _GARBAGE, least_gain, most_gain, _SUPER_BLOCK)


_LIMITS: dict[GgmlType, Limit] = {
    GgmlType.Q8_0: _fine(0.10, 0.0145, 0.02, _BLOCK),
    GgmlType.Q6_K: _fine(0.15, 0.048, 0.05, _SUPER_BLOCK),
    GgmlType.Q5_K: _fine(0.20, 0.088, 0.05, _SUPER_BLOCK),
    GgmlType.Q5_1: _fine(0.20, 0.088, 0.05, _BLOCK),
    GgmlType.Q5_0: _fine(0.32, 0.12, 0.09, _BLOCK),
    GgmlType.Q4_K: _fine(0.38, 0.18, 0.10, _SUPER_BLOCK),
    GgmlType.Q4_1: _fine(0.38, 0.18, 0.10, _BLOCK),
    GgmlType.Q4_0: _fine(0.40, 0.24, 0.10, _BLOCK),
    GgmlType.IQ4_NL: _fine(0.38, 0.18, 0.10, _BLOCK),
    GgmlType.IQ4_XS: _fine(0.38, 0.18, 0.10, _SUPER_BLOCK),
    GgmlType.MXFP4: _fine(0.40, 0.24, 0.10, _BLOCK),
    GgmlType.NVFP4: _fine(0.40, 0.24, 0.10, _SUPER_BLOCK),
    GgmlType.Q3_K: _coarse(0.45, 0.35, 0.90, 1.10),
    GgmlType.IQ3_S: _coarse(0.70, 0.35, 0.75, 1.15),
    GgmlType.IQ3_XXS: _coarse(0.75, 0.46, 0.75, 1.15),
    GgmlType.Q2_K: _coarse(0.85, 0.62, 0.75, 1.15),
    GgmlType.IQ2_S: _coarse(0.95, 0.67, 0.55, 1.20),
    GgmlType.IQ2_XS: _coarse(0.95, 0.70, 0.55, 1.20),
}

# IQ2_XXS and what has fewer bits, and types that do not exist yet.
_COARSEST = _coarse(0.97, 0.97, 0.45, 1.20)


def limit_of(kind: GgmlType) -> Limit:
    """Return the limits of a block type."""
    return _LIMITS.get(kind, _COARSEST)
