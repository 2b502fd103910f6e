"""Second moments as error feedback needs them: fitted to a tensor's columns, factored once, a few in memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.calibration.moments import Moments
from gemma4_quant.codecs.feedback import FeedbackFactor, prepare_factor

FACTOR_MEMORY_BYTES = 1 << 30
"""Factors kept beside those in use, for the tensors that share an input: a full one of 6,144 columns takes 0.3 GB."""


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of a tensor's matrices.

    moments: as calibrated. n_cols: of the tensor, more than were calibrated where it is padded with zeros.
    lookup_share: weight of the tensor's use as a table of embeddings, where all columns matter alike, relative to its
    use as the output matrix.
    """

    moments: Moments
    n_cols: int
    lookup_share: float = 0.0

    @property
    def identity(self) -> bytes:
        """Return bytes that change whenever the numbers do; see RowSource."""
        return f"{self.n_cols} {self.lookup_share} ".encode() + self.moments.identity

    def blocks(self, matrix: int) -> list[npt.NDArray[np.float32]]:
        """Return the blocks on the diagonal of E[x xᵀ] of one matrix's inputs, (w, w) float32 each.

        Columns that were padded have zeros; they belong to the last block, whose width 256 divides.
        """
        blocks = [self.moments.block(matrix, index) for index in range(self.moments.n_blocks)]
        n_missing = self.n_cols - self.moments.n_in
        if n_missing:
            blocks[-1] = np.pad(blocks[-1], (0, n_missing))
        added = np.float32(self.lookup_weight(matrix))
        for block in blocks if added else ():
            block[np.diag_indices(len(block))] += added
        return blocks

    def lookup_weight(self, matrix: int) -> float:
        """Return what a squared error of any column counts as part of the embedding, in the units of the moments."""
        return self.lookup_share * float(self.moments.mean_square(matrix).mean()) if self.lookup_share else 0.0

    def held_out(self, matrix: int) -> npt.NDArray[np.float32]:
        """Return vectors of inputs that are not in the moments, (n_vectors, n_cols) float32."""
        vectors = self.moments.held_out(matrix)
        return np.pad(vectors, ((0, 0), (0, self.n_cols - vectors.shape[1])))


class FactorCache:
    """Factors by what they are made of, shared by the threads and file types of a run.

    A factor is made once while others wait for it. The latest are kept up to `max_bytes`; what threads work with
    comes on top.
    """

    def __init__(self, max_bytes: int = FACTOR_MEMORY_BYTES) -> None:
        """Begin empty."""
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._factors: OrderedDict[bytes, Future[FeedbackFactor]] = OrderedDict()

    def factor(self, inputs: Inputs, matrix: int) -> FeedbackFactor:
        """Return the factor of one matrix's inputs; raises MomentsError as prepare_factor does."""
        key = f"{matrix} ".encode() + inputs.identity
        return self._get(key, lambda: prepare_factor(inputs.blocks(matrix)))

    def _get(self, key: bytes, make: Callable[[], FeedbackFactor]) -> FeedbackFactor:
        with self._lock:
            found = self._factors.get(key)
            if found is not None:
                self._factors.move_to_end(key)
            else:
                own: Future[FeedbackFactor] = Future()
                self._factors[key] = own
        if found is not None:
            return found.result()
        try:
            own.set_result(make())
        except BaseException as error:
            with self._lock:
                self._factors.pop(key, None)
            own.set_exception(error)
            raise
        self._forget_oldest()
        return own.result()

    def _forget_oldest(self) -> None:
        with self._lock:
            done = [(key, factor_bytes(each.result())) for key, each in self._factors.items() if each.done()]
            total = sum(n_bytes for _, n_bytes in done)
            for key, n_bytes in done[:-1]:
                if total <= self._max_bytes:
                    return
                del self._factors[key]
                total -= n_bytes


def factor_bytes(factor: FeedbackFactor) -> int:
    """Return the memory that a factor takes."""
    arrays = [array for block in factor.blocks for array in (block.moments, block.upper, block.lower)]
    arrays += [array for panel in factor.panels for array in (panel.root, panel.inverse, panel.moments)]
    return sum(array.nbytes for array in arrays)
