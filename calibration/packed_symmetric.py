"""Symmetric matrices as their lower triangle, row by row: half the bytes of the square."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Packed = npt.NDArray[np.float32]
"""(width · (width + 1) / 2,) float32: element (i, j ≤ i) stands at i · (i + 1) / 2 + j."""

_PANEL = 512
"""Rows that are updated, packed and unpacked together: BLAS is at full speed there, and what a panel computes above
the diagonal is little beside the rest."""


def packed_size(width: int) -> int:
    """Return how many numbers the lower triangle of a square of `width` rows has."""
    return width * (width + 1) // 2


def unpacked(packed: Packed, width: int) -> npt.NDArray[np.float32]:
    """Return the symmetric matrix, (width, width) float32."""
    square = np.zeros((width, width), np.float32)
    for start, stop in _panels(width):
        lower = np.tri(stop - start, stop, start, dtype=bool)
        square[start:stop, :stop][lower] = packed[packed_size(start) : packed_size(stop)]
        square[:start, start:stop] = square[start:stop, :start].T
        corner = square[start:stop, start:stop]
        corner += np.tril(corner, -1).T
    return square


class RunningProducts:
    """The sum of x xᵀ over vectors x so far, of which only panels on and below the diagonal are kept."""

    def __init__(self, width: int) -> None:
        """Begin with zeros for vectors of `width` numbers."""
        self.width = width
        self._sums = [np.zeros((stop - start, stop), np.float32) for start, stop in _panels(width)]

    @staticmethod
    def n_bytes(width: int) -> int:
        """Return the memory that the sums take."""
        return sum(4 * (stop - start) * stop for start, stop in _panels(width))

    def add(self, vectors: npt.NDArray[np.float32]) -> None:
        """Add vectors (n, width): one BLAS product for each panel, as a rank-n update."""
        for panel, (start, stop) in zip(self._sums, _panels(self.width), strict=True):
            np.add(panel, vectors[:, start:stop].T @ vectors[:, :stop], out=panel)

    def diagonal(self) -> npt.NDArray[np.float32]:
        """Return the sums of squares, (width,) float32."""
        starts = (start for start, _ in _panels(self.width))
        return np.concatenate([sums.diagonal(start) for sums, start in zip(self._sums, starts, strict=True)])

    def packed(self) -> Packed:
        """Return the sums as their lower triangle."""
        parts = [
            sums[np.tri(stop - start, stop, start, dtype=bool)]
            for sums, (start, stop) in zip(self._sums, _panels(self.width), strict=True)
        ]
        return np.concatenate(parts)


def _panels(width: int) -> Iterator[tuple[int, int]]:
    for start in range(0, width, _PANEL):
        yield start, min(start + _PANEL, width)
