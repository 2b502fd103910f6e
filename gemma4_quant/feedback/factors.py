"""Second moments as error feedback needs them: fitted to a tensor's columns, factored once, a few in memory."""

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.calibration.moments import Moments, block_widths
from gemma4_quant.codecs.feedback import FeedbackFactor, prepare_factor
from gemma4_quant.codecs.feedback.factor import PANEL

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

    @property
    def factor_bytes(self) -> int:
        """Return about the memory that a factor takes: H, and its root twice as a triangle."""
        widths = block_widths(self.n_cols, self.moments.block_width)
        return sum(4 * (2 * width * width + 3 * min(width, PANEL) * width) for width in widths)

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

    A factor is made once. A thread that needs one which another thread is at makes the next that will be needed
    meanwhile, as far as memory allows: making a factor takes one thread as long as many threads take to use it. The
    latest are kept up to `max_bytes`; what threads work with comes on top.
    """

    def __init__(self, max_bytes: int = FACTOR_MEMORY_BYTES) -> None:
        """Begin empty."""
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._factors: OrderedDict[bytes, Future[FeedbackFactor]] = OrderedDict()
        self._expected: dict[bytes, tuple[Inputs, int]] = {}

    def expect(self, inputs: Inputs, n_matrices: int) -> None:
        """Say that the factors of a tensor's matrices will be asked for, after those of earlier calls."""
        for matrix in range(n_matrices):
            self._expected.setdefault(_key(inputs, matrix), (inputs, matrix))

    def factor(self, inputs: Inputs, matrix: int) -> FeedbackFactor:
        """Return the factor of one matrix's inputs; raises MomentsError as prepare_factor does."""
        key = _key(inputs, matrix)
        found, is_ours = self._claim(key)
        if is_ours:
            return self._make(key, found, inputs, matrix)
        while not found.done() and self._make_next(key):
            pass
        return found.result()

    def _claim(self, key: bytes) -> tuple[Future[FeedbackFactor], bool]:
        """Return the factor of a key, now or later, and whether the caller must make it."""
        with self._lock:
            found = self._factors.get(key)
            if found is not None:
                self._factors.move_to_end(key)
                return found, False
            own = self._factors[key] = Future()
            return own, True

    def _make_next(self, waiting_for: bytes) -> bool:
        """Make the next factor after one that is being waited for; False when there is none, or no room for it."""
        with self._lock:
            keys = list(self._expected)
            start = keys.index(waiting_for) + 1 if waiting_for in self._expected else len(keys)
            key = next((key for key in keys[start:] if key not in self._factors), None)
            if key is None:
                return False
            inputs, matrix = self._expected[key]
            widths = [self._expected[made][0] for made in (*self._factors, key) if made in self._expected]
            if sum(each.factor_bytes for each in widths) > self._max_bytes:
                return False
            own = self._factors[key] = Future()
        self._make(key, own, inputs, matrix)
        return True

    def _make(self, key: bytes, own: Future[FeedbackFactor], inputs: Inputs, matrix: int) -> FeedbackFactor:
        try:
            own.set_result(prepare_factor(inputs.blocks(matrix)))
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


def _key(inputs: Inputs, matrix: int) -> bytes:
    return f"{matrix} ".encode() + inputs.identity


def factor_bytes(factor: FeedbackFactor) -> int:
    """Return the memory that a factor takes."""
    arrays = [array for block in factor.blocks for array in (block.moments, block.upper, block.lower)]
    arrays += [array for panel in factor.panels for array in (panel.root, panel.inverse, panel.moments)]
    return sum(array.nbytes for array in arrays)
