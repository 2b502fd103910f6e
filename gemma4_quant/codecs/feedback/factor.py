"""What error feedback needs of the second moments of a matrix's inputs: H = E[x xᵀ], damped and factored.

With H = R Rᵀ, R upper triangular, the layer-output error of a row is tr(ΔHΔᵀ) = |ΔR|², and column k of ΔR depends on
the columns up to k of Δ only: the columns can be rounded from the first to the last, each making up for the errors
before it. (R is the inverse of the Cholesky factor of H⁻¹ that GPTQ works with, arXiv 2210.17323; this side needs no
inverse of the whole of H.)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gemma4_quant.arrays import Float32Row
from gemma4_quant.codecs.feedback.matrix_tiles import STRIP, add_product, packed_strip
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled
from gemma4_quant.errors import MomentsError, ShapeError

PANEL = 256
"""Columns rounded together: the super-block of K types (QK_K in ggml-common.h)."""

_GROUP = 32
_MAX_ASYMMETRY = 1e-3
"""Of the geometric mean of the two diagonal elements; sums in float32 stay far below."""

_DAMPING_STEPS = 8

Square = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Panel:
    """Up to 256 columns of a block of H, and what feedback between them needs.

    first, width: columns, counted from the start of the row. root (width, width): the panel's own part of R. inverse:
    its inverse. moments: root @ rootᵀ, the second moments of these inputs that later columns cannot make up for.
    energy: sum of the squares in these columns of R, which errors of equal size in all weights come to.
    """

    first: int
    width: int
    root: Square
    inverse: Square
    moments: Square
    energy: float

    @cached_property
    def weights(self) -> Float32Row:
        """(width,) weight of each column's squared error when all later columns make up for it."""
        weights: Float32Row = np.square(np.diagonal(self.root))
        return weights


@dataclass(frozen=True)
class FactorBlock:
    """One block of a block-diagonal H: its first column, its width, H, and R in strips for products.

    moments (width, width): H. upper, lower: the strips of R and Rᵀ without their zero parts, one after the other
    (strip s of R holds rows 0 to 16·(s + 1), strip s of Rᵀ rows 16·s to width).
    """

    first: int
    width: int
    moments: Square
    upper: npt.NDArray[np.float32]
    lower: npt.NDArray[np.float32]
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class FeedbackFactor:
    """Second moments of the inputs of a matrix, damped and factored.

    n_in: columns. importance (n_in,) float32: diagonal of H as given. damping: what was added to the diagonal, as a
    part of its mean; more than asked for where H was too far from positive definite. unit: H divided by it has a mean
    diagonal of about 1, as all arrays here have. added: to that diagonal.
    """

    n_in: int
    importance: Float32Row
    damping: float
    unit: float
    added: float
    blocks: tuple[FactorBlock, ...]

    @property
    def panels(self) -> Iterator[Panel]:
        """All panels, from the first column to the last."""
        return (panel for block in self.blocks for panel in block.panels)


def prepare_factor(blocks: Sequence[Square], *, damping: float = 0.1) -> FeedbackFactor:
    """Damp and factor the second moments of a matrix's inputs.

    blocks: (w, w) float32 each, the blocks on the diagonal of H from the first column on, one for the full H; all
    other elements count as zero. damping: added to the diagonal, as a part of its mean over all blocks; 0.1 is the
    best of those measured from 2,000 to 131,000 tokens. Inputs that were always zero get the damping alone. An H of
    zeros says nothing and counts as the identity. Where a block is not positive definite even so, damping is
    multiplied by ten until it is.
    Raises ShapeError when a block is not square or not whole groups of 32 columns, MomentsError when it is not
    finite, not symmetric, or a diagonal element is negative.
    """
    if not damping > 0:
        raise ValueError(f"damping must be positive, not {damping}")
    checked = [_checked(block, number) for number, block in enumerate(blocks)]
    if not checked:
        raise ShapeError("second moments have no blocks")
    importance: Float32Row = np.concatenate([np.diagonal(block) for block in checked]).astype(np.float32)
    mean = float(importance.astype(np.float64).mean())
    unit = 2.0 ** round(math.log2(mean)) if mean > 0 else 1.0
    for _ in range(_DAMPING_STEPS):
        added = damping * mean / unit if mean > 0 else 1.0
        try:
            parts = _factor_all(checked, unit, added)
        except _NotPositiveError:
            damping *= 10
            continue
        return FeedbackFactor(len(importance), importance, damping, unit, added, parts)
    raise MomentsError("second moments are far from positive definite; calibrate again")


class _NotPositiveError(Exception):
    """A matrix has no Cholesky factor."""


def _checked(block: Square, number: int) -> Square:
    """Return a block made exactly symmetric; raises what prepare_factor says."""
    if block.ndim != 2 or block.shape[0] != block.shape[1] or block.shape[0] % _GROUP or not block.size:
        raise ShapeError(
            f"block {number} of second moments is {block.shape}; it must be square, in groups of {_GROUP}"
        )
    wide = np.asarray(block, np.float32)
    if not np.isfinite(wide).all():
        row, column = np.argwhere(~np.isfinite(wide))[0]
        raise MomentsError(f"second moments are {wide[row, column]} at [{row}, {column}] of block {number}; {_AGAIN}")
    diagonal = np.diagonal(wide)
    if diagonal.min() < 0:
        raise MomentsError(f"input {int(diagonal.argmin())} of block {number} has a negative mean square; {_AGAIN}")
    size = np.sqrt(diagonal)
    for first in range(0, len(wide), PANEL):
        rows = slice(first, first + PANEL)
        if (np.abs(wide[rows] - wide[:, rows].T) > _MAX_ASYMMETRY * np.outer(size[rows], size)).any():
            raise MomentsError(f"block {number} of second moments is not symmetric; {_AGAIN}")
    return wide


_AGAIN = "the file is damaged, calibrate again"


def _factor_all(blocks: Sequence[Square], unit: float, added: float) -> tuple[FactorBlock, ...]:
    parts, first = [], 0
    for block in blocks:
        parts.append(_factor_block(block, first, unit, added))
        first += len(block)
    return tuple(parts)


def _factor_block(block: Square, first: int, unit: float, added: float) -> FactorBlock:
    """Factor one block of H / unit + added · I."""
    width = len(block)
    moments = np.empty_like(block)
    for start in range(0, width, PANEL):
        rows = slice(start, start + PANEL)
        moments[rows] = (block[rows] * np.float32(0.5 / unit)) + (block[:, rows].T * np.float32(0.5 / unit))
    moments[np.arange(width), np.arange(width)] += np.float32(added)
    root = moments.copy()
    inverses = np.zeros((width, PANEL), np.float32)
    if not _factor(root, inverses):
        raise _NotPositiveError
    panels = tuple(_panel(root, inverses, start, first) for start in range(0, width, PANEL))
    return FactorBlock(first, width, moments, *_strips(root), panels)


def _panel(root: Square, inverses: Square, start: int, first: int) -> Panel:
    stop = min(start + PANEL, len(root))
    own = np.triu(root[start:stop, start:stop]).astype(np.float32)
    moments = (own.astype(np.float64) @ own.T.astype(np.float64)).astype(np.float32)
    inverse = np.ascontiguousarray(inverses[start:stop, : stop - start])
    above = root[:start, start:stop]
    energy = float(np.einsum("ij,ij->", above, above) + np.einsum("ij,ij->", own, own))
    return Panel(first + start, stop - start, own, inverse, moments, energy)


def _strips(root: Square) -> tuple[Float32Row, Float32Row]:
    width = len(root)
    upper, lower = (
        np.empty(triangle_at(width // STRIP), np.float32),
        np.empty(triangle_at(width // STRIP), np.float32),
    )
    _pack(root, upper, lower)
    return upper, lower


@compiled()
def triangle_at(strip: int) -> int:
    """Return where strip `strip` of R begins in FactorBlock.upper."""
    return STRIP * STRIP * strip * (strip + 1) // 2


@compiled()
def lower_triangle_at(strip: int, width: int) -> int:
    """Return where strip `strip` of Rᵀ begins in FactorBlock.lower."""
    return STRIP * (width * strip - STRIP * strip * (strip - 1) // 2)


@compiled()
def _pack(root: Array, upper: Array, lower: Array) -> None:
    width = len(root)
    for strip in range(width // STRIP):
        column = strip * STRIP
        for i in range(column + STRIP, width):
            for k in range(STRIP):
                root[i, column + k] = np.float32(0)
        for i in range(STRIP):
            for k in range(i):
                root[column + i, column + k] = np.float32(0)
        packed_strip(root, 0, column + STRIP, column, upper, triangle_at(strip))
        packed_strip(root.T, column, width - column, column, lower, lower_triangle_at(strip, width))


@compiled()
def _factor(root: Array, inverses: Array) -> bool:
    """Replace the upper triangle of H by R with H = R Rᵀ, panel by panel from the last; False where it has none.

    inverses (width, PANEL): the rows of each panel get the inverse of its own part of R.
    """
    width = len(root)
    later = np.empty((width, PANEL), np.float32)
    packed = np.empty(width * STRIP, np.float32)
    for start in range((width - 1) // PANEL * PANEL, -1, -PANEL):
        stop = min(start + PANEL, width)
        n = width - stop
        for column in range(start, stop, STRIP):  # H − R_later R_laterᵀ
            for i in range(n):
                for k in range(STRIP):
                    packed[i * STRIP + k] = -root[column + k, stop + i]
            if n > 0:
                add_product(root[:stop, stop:], packed, 0, root[:stop, column : column + STRIP])
        if not _factor_panel(root[start:stop, start:stop], inverses[start:stop]):
            return False
        n = stop - start
        for column in range(start, stop, STRIP):  # R_above = H_above R_own⁻ᵀ
            for i in range(n):
                for k in range(STRIP):
                    packed[i * STRIP + k] = inverses[column + k, i]
            later[:start, column - start : column - start + STRIP] = np.float32(0)
            if start > 0:
                add_product(
                    root[:start, start:stop], packed, 0, later[:start, column - start : column - start + STRIP]
                )
        root[:start, start:stop] = later[:start, :n]
    return True


@compiled()
def _factor_panel(own: Array, inverse: Array) -> bool:
    """Factor a diagonal panel and invert the factor, in float64; both upper triangular."""
    n = len(own)
    r = np.zeros((n, n), np.float64)
    for j in range(n - 1, -1, -1):
        pivot = np.float64(own[j, j])
        for k in range(j + 1, n):
            pivot -= r[j, k] * r[j, k]
        if not pivot > 1e-6 * np.float64(own[j, j]) or not pivot > 0:
            return False
        r[j, j] = np.sqrt(pivot)
        for i in range(j):
            total = np.float64(own[i, j])
            for k in range(j + 1, n):
                total -= r[i, k] * r[j, k]
            r[i, j] = total / r[j, j]
    u = np.zeros((n, n), np.float64)
    for j in range(n):
        u[j, j] = 1 / r[j, j]
        for i in range(j - 1, -1, -1):
            total = np.float64(0)
            for k in range(i + 1, j + 1):
                total += r[i, k] * u[k, j]
            u[i, j] = -total / r[i, i]
    for i in range(n):
        for k in range(n):
            own[i, k] = np.float32(r[i, k])
            inverse[i, k] = np.float32(u[i, k])
    return True
