"""Observer that adds up second moments of the inputs of some weights."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.blas import blas_threads
from gemma4_quant.calibration.moment_sums import RunningMoments
from gemma4_quant.calibration.moments_writing import EntryLayout
from gemma4_quant.errors import NonFiniteError, RunError, listed
from gemma4_quant.runner.observer import Product

_WIDE = 1024
"""Columns from which several threads are faster than one on the products of a micro-batch."""


class MomentsCollector:
    """Running sums of the entries of one pass; see Observer.

    running: by entry, the moments of each matrix so far.
    """

    def __init__(self, entries: Sequence[EntryLayout], n_threads: int) -> None:
        """Begin with nothing counted. n_threads: for products of large matrices."""
        self._n_threads = n_threads
        self.running = {
            entry.name: [
                RunningMoments(entry.n_in, entry.block_width, entry.n_slots) for _ in range(entry.n_matrices)
            ]
            for entry in entries
        }
        self._chunk, self._held_out = 0, False
        self._n_seen: dict[str, int] = {}

    def begin_chunk(self, number: int, *, held_out: bool) -> None:
        """Say which chunk of the text follows. held_out: offer its vectors for the sample instead of adding them."""
        self._chunk, self._held_out = number, held_out
        self._n_seen = dict.fromkeys(self.running, 0)

    def check_finite(self) -> None:
        """Raise NonFiniteError naming the weights whose inputs have been NaN or infinite."""
        bad = [name for name, each in self.running.items() if not all(matrix.is_finite() for matrix in each)]
        if bad:
            raise NonFiniteError(f"the inputs of {listed(bad)} are NaN or infinite; is the model damaged?")

    def wants(self, product: Product) -> bool:
        """Choose the weights that bear the entries' names; see Observer."""
        return product.weight in self.running

    def observe(
        self, product: Product, inputs: npt.NDArray[np.float32], experts: npt.NDArray[np.int32] | None
    ) -> None:
        """Add the inputs of a product; see Observer."""
        matrices = self.running[product.weight]
        if product.n_in != matrices[0].n_in or (experts is None and len(matrices) != 1):
            raise RunError(f"{product.weight} is multiplied with inputs of changing size; nothing was written")
        rows = np.ascontiguousarray(inputs).reshape(-1, product.n_in)
        start = self._n_seen[product.weight]
        n_choices = len(rows) if experts is None else experts.size
        with blas_threads(self._n_threads if matrices[0].largest_block >= _WIDE else 1):
            for matrix, chosen, places in _by_matrix(product, len(rows), experts, len(matrices)):
                self._take(matrices[matrix], rows[chosen], start + places)
        self._n_seen[product.weight] = start + n_choices

    def _take(self, running: RunningMoments, vectors: Float32Rows, places: npt.NDArray[np.int64]) -> None:
        if self._held_out:
            running.hold_out(vectors, places, self._chunk)
        else:
            running.add(vectors)


def _by_matrix(
    product: Product, n_rows: int, experts: npt.NDArray[np.int32] | None, n_matrices: int
) -> Iterator[tuple[int, slice | npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield each matrix that is used, the rows of input that it is multiplied with, and their places among all."""
    if experts is None:
        yield 0, slice(None), np.arange(n_rows)
        return
    choices = experts.reshape(-1)
    if choices.size and not 0 <= choices.min() <= choices.max() < n_matrices:
        raise RunError(f"{product.weight}: the router chose an expert that does not exist; is the model damaged?")
    rows_per_choice = n_rows // experts.shape[0]  # 1 where all of a token's experts see the same input
    n_used = experts.shape[1]
    order = np.argsort(choices, kind="stable")
    ends = np.searchsorted(choices[order], np.arange(n_matrices + 1))
    for matrix in np.flatnonzero(np.diff(ends)):
        places = order[ends[matrix] : ends[matrix + 1]]
        rows = places // n_used if rows_per_choice == 1 else places
        yield int(matrix), rows, places
