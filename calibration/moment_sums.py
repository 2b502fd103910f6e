"""Adding up second moments, and drawing the vectors that are held out, for one pass over the text."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.arrays import Float32Row, Float32Rows
from gemma4_quant.calibration.moments import block_widths
from gemma4_quant.calibration.packed_symmetric import Packed, RunningProducts
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.ggml import GgmlType

_ROW_BITS = 32
"""Bits of a vector's place within its chunk; the bits above are the number of the chunk."""


@dataclass(frozen=True)
class MatrixMoments:
    """What is stored of one matrix.

    sums: (packed_length,) float32. diagonal: (n_in,) float32. count: vectors summed. keys: (n_slots,) int64, −1 for
    an empty slot. held_out: (n_slots, n_in) uint16, bfloat16 bits, in the order of their keys.
    """

    sums: Packed
    diagonal: Float32Row
    count: int
    keys: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.uint16]


class HeldOut:
    """A random choice of at most n_slots vectors: those with the lowest keys of all that were offered."""

    def __init__(self, n_slots: int, n_in: int) -> None:
        """Begin without vectors."""
        self.n_slots = n_slots
        self._keys = np.empty(0, np.int64)
        self._vectors = np.empty((0, n_in), np.uint16)

    def offer(self, keys: npt.NDArray[np.int64], vectors: npt.NDArray[np.uint16]) -> None:
        """Consider vectors (n, n_in) of bfloat16 bits with keys (n,) that are all different."""
        both = np.concatenate([self._keys, keys])
        lowest = np.argsort(both, kind="stable")[: self.n_slots]
        self._vectors = np.concatenate([self._vectors, vectors])[lowest]
        self._keys = both[lowest]

    def stored(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
        """Return all slots: keys (n_slots,) and vectors (n_slots, n_in), empty ones −1 and zeros."""
        n_empty = self.n_slots - len(self._keys)
        return np.pad(self._keys, (0, n_empty), constant_values=-1), np.pad(self._vectors, ((0, n_empty), (0, 0)))


class RunningMoments:
    """The moments of one matrix so far."""

    def __init__(self, n_in: int, block_width: int, n_slots: int) -> None:
        """Begin with nothing counted."""
        self._blocks = [RunningProducts(width) for width in block_widths(n_in, block_width)]
        self._held_out = HeldOut(n_slots, n_in)
        self.n_in = n_in
        self.count = 0

    @property
    def largest_block(self) -> int:
        """Columns of the widest block."""
        return self._blocks[0].width

    @staticmethod
    def n_bytes(n_in: int, block_width: int, n_slots: int) -> int:
        """Return the memory that this takes for a matrix, with what adding to it takes for a moment."""
        sums = sum(map(RunningProducts.n_bytes, block_widths(n_in, block_width)))
        return sums + n_slots * n_in * 2

    def add(self, vectors: Float32Rows) -> None:
        """Add vectors (n, n_in) to the sums."""
        start = 0
        for block in self._blocks:
            block.add(vectors[:, start : start + block.width])
            start += block.width
        self.count += len(vectors)

    def hold_out(self, vectors: Float32Rows, places: npt.NDArray[np.int64], chunk: int) -> None:
        """Offer vectors (n, n_in) for the held-out sample. places: (n,) where they stand within their chunk."""
        rounded = codec_for(GgmlType.BF16).encode(vectors, None, Effort.FAST).view("<u2")
        self._held_out.offer(_scattered(places + (chunk << _ROW_BITS)), rounded)

    def is_finite(self) -> bool:
        """Tell whether no input was NaN or infinite, or too large to be squared."""
        return all(np.isfinite(block.diagonal()).all() for block in self._blocks)

    def result(self) -> MatrixMoments:
        """Return what is stored."""
        keys, held_out = self._held_out.stored()
        return MatrixMoments(
            sums=np.concatenate([block.packed() for block in self._blocks]),
            diagonal=np.concatenate([block.diagonal() for block in self._blocks]),
            count=self.count,
            keys=keys,
            held_out=held_out,
        )


def _scattered(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return a number below 2⁶³ for each, almost surely different: SplitMix64's finaliser (Steele et al., 2014)."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)
