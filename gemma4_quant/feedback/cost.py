"""What error feedback takes, by a trial on this machine: its work grows with the width of the blocks of H."""

import functools
import time
from dataclasses import dataclass

import numpy as np

from gemma4_quant.calibration.moments import block_widths
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.feedback import FEEDBACK_TYPES, ROWS_AT_ONCE, encode_with_feedback, prepare_factor
from gemma4_quant.ggml import GgmlType
from gemma4_quant.model import Tensor
from gemma4_quant.writing.plan import Cost

_NARROW, _WIDE = 256, 1536
"""Widths of the trials. What a weight takes grows between them, and hardly beyond (docs/measurements.md)."""


@dataclass(frozen=True)
class _Trial:
    """Seconds: of a weight in a narrow and in a wide block, of a factor for each cubed column."""

    narrow: float
    wide: float
    cubed_column: float

    def weight(self, width: int) -> float:
        """Return the seconds of a weight in a block of that width."""
        share = min(1.0, max(0.0, (width - _NARROW) / (_WIDE - _NARROW)))
        return self.narrow + share * (self.wide - self.narrow)


def feedback_cost(tensor: Tensor, kind: GgmlType, block_width: int, effort: Effort) -> Cost:
    """Return what encoding a tensor of rows to `kind` takes, with blocks of H of that width.

    The first call for a type makes a trial of a moment, longer where kernels must be compiled.
    """
    trial = _trial(kind, effort)
    widths = block_widths(tensor.n_cols, block_width)
    n_rows = tensor.n_weights // tensor.n_cols
    encoding = n_rows * sum(width * trial.weight(width) for width in widths)
    factors = tensor.n_matrices * trial.cubed_column * sum(width**3 for width in widths)
    return Cost(encoding + factors, factor_memory(tensor.n_cols, block_width))


def factor_memory(n_cols: int, block_width: int) -> int:
    """Return the bytes that a factor takes, H and its root twice over, and as much again while it is made."""
    return 4 * 4 * sum(width * width for width in block_widths(n_cols, block_width))


@functools.cache
def _trial(kind: GgmlType, effort: Effort) -> _Trial:
    if kind not in FEEDBACK_TYPES:
        raise ValueError(f"{kind.name} is not encoded with feedback")
    _, narrow_s = _seconds(kind, effort, _NARROW)
    factor_s, wide_s = _seconds(kind, effort, _WIDE)
    return _Trial(narrow_s, wide_s, factor_s / _WIDE**3)


def _seconds(kind: GgmlType, effort: Effort, width: int) -> tuple[float, float]:
    """Return the seconds of a factor of `width` columns, and of a weight encoded with it; the better of two tries."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2 * width, width), np.float32) + rng.standard_normal((2 * width, 1), np.float32)
    moments = (vectors.T @ vectors / np.float32(2 * width)).astype(np.float32)
    rows = rng.standard_normal((ROWS_AT_ONCE, width), np.float32)
    tries = []
    for _ in range(2):
        start = time.perf_counter()
        factor = prepare_factor([moments])
        middle = time.perf_counter()
        encode_with_feedback(rows, kind, factor, effort)
        tries.append((middle - start, (time.perf_counter() - middle) / rows.size))
    return min(first for first, _ in tries), min(second for _, second in tries)
