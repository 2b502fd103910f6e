"""The encoder of a tensor with second moments: feedback where it holds on held-out text, else the plain codec."""

import threading
from concurrent.futures import Future

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.feedback import ROWS_AT_ONCE, encode_with_feedback
from gemma4_quant.codecs.lanes import LANES
from gemma4_quant.feedback.cost import feedback_cost
from gemma4_quant.feedback.factors import FactorCache, Inputs
from gemma4_quant.feedback.summary import MatrixOutcome, TensorFeedback, tensor_feedback
from gemma4_quant.ggml import GgmlType
from gemma4_quant.model import Tensor
from gemma4_quant.writing.plan import Cost

TOKENS_PER_COLUMN = 3
"""Vectors a column below which statistics are called too few (prototypes of error feedback)."""

_FEWEST_HELD_OUT = 16
"""Held-out vectors below which they tell chance from fit too badly."""

_REVISION = 1
"""To be raised with every change of what is encoded, so that no interrupted file is finished by another encoder."""


class FeedbackEncoder:
    """Encodes the rows of one tensor, and notes how that went; see RowEncoder.

    Before the first rows of a matrix are encoded, a sample of them is encoded with feedback and without, and compared
    on the held-out inputs: where feedback is not better there, the matrix is encoded without. The decision depends on
    the tensor alone, not on which rows come first.
    """

    def __init__(self, tensor: Tensor, kind: GgmlType, inputs: Inputs, factors: FactorCache) -> None:
        """Get ready; nothing is read yet. tensor: whose rows will be encoded. kind: the type to write."""
        self.tensor, self.kind = tensor, kind
        self._inputs, self._factors = inputs, factors
        self._lock = threading.Lock()
        self._outcomes: dict[int, Future[MatrixOutcome]] = {}
        self._before: list[float] = []
        self._after: list[float] = []

    @property
    def rows_at_once(self) -> int:
        """Return the rows that share a pass over the factor."""
        return ROWS_AT_ONCE

    @property
    def identity(self) -> bytes:
        """Return what the bytes depend on, beside rows, importance and effort."""
        return f"feedback {_REVISION} {self.kind.name} ".encode() + self._inputs.identity

    def cost(self, effort: Effort) -> Cost:
        """Estimate what encoding the whole tensor takes."""
        return feedback_cost(self.tensor, self.kind, self._inputs.moments.block_width, effort)

    def encode(self, rows: Float32Rows, importance: Float32Row | None, effort: Effort, matrix: int = 0) -> ByteRows:
        """Return rows of a matrix in the type; importance serves where feedback is not used."""
        if self._outcome(matrix, importance, effort).fallback is not None:
            return codec_for(self.kind).encode(rows, importance, effort)
        result = encode_with_feedback(rows, self.kind, self._factors.factor(self._inputs, matrix), effort)
        with self._lock:
            self._before.append(result.error_before)
            self._after.append(result.error_after)
        return result.data

    def summary(self) -> TensorFeedback | None:
        """Say what was encoded so far; None when nothing was."""
        with self._lock:
            outcomes = [each.result() for _, each in sorted(self._outcomes.items()) if each.done()]
            if not outcomes:
                return None
            n_matrices = self.tensor.n_matrices
            return tensor_feedback(self.tensor.name, self.kind.name, n_matrices, outcomes, self._before, self._after)

    def _outcome(self, matrix: int, importance: Float32Row | None, effort: Effort) -> MatrixOutcome:
        """Return the decision about a matrix, made by the first thread that asks."""
        with self._lock:
            found = self._outcomes.get(matrix)
            if found is None:
                own = self._outcomes[matrix] = Future()
        if found is not None:
            if not found.done() and self._inputs.moments.counts[matrix]:
                self._factors.factor(self._inputs, matrix)  # rather than wait, lend a hand with what comes next
            return found.result()
        try:
            own.set_result(self._judge(matrix, importance, effort))
        except BaseException as error:
            own.set_exception(error)
            raise
        return own.result()

    def _judge(self, matrix: int, importance: Float32Row | None, effort: Effort) -> MatrixOutcome:
        moments = self._inputs.moments
        n_vectors = int(moments.counts[matrix])
        before = after = fallback = None
        held_out = self._inputs.held_out(matrix)
        if n_vectors == 0:
            fallback = "no input was seen"
        elif len(held_out) >= _FEWEST_HELD_OUT:
            before, after = self._held_out_errors(matrix, held_out, importance, effort)
            if after >= before:
                fallback = "no better on held-out text"
        elif n_vectors < moments.block_width:
            fallback = "few inputs and none held out"
        return MatrixOutcome(matrix, n_vectors, TOKENS_PER_COLUMN * moments.block_width, before, after, fallback)

    def _held_out_errors(
        self, matrix: int, held_out: Float32Rows, importance: Float32Row | None, effort: Effort
    ) -> tuple[float, float]:
        """Return the error of a sample of rows on held-out inputs, without feedback and with it."""
        rows = self._sample(matrix)
        factor = self._factors.factor(self._inputs, matrix)
        plain = codec_for(self.kind).encode(rows, importance, effort)
        fed = encode_with_feedback(rows, self.kind, factor, effort).data
        lookup_weight = self._inputs.lookup_weight(matrix)

        def error(data: ByteRows) -> float:
            change = codec_for(self.kind).decode(data, self.tensor.n_cols) - rows
            out = change @ held_out.T
            return float(np.square(out).sum() / len(held_out) + lookup_weight * np.square(change).sum())

        return error(plain), error(fed)

    def _sample(self, matrix: int) -> Float32Rows:
        """Return up to LANES rows of a matrix, evenly spaced."""
        tensor = self.tensor
        n_rows = tensor.n_rows // tensor.n_matrices
        chosen = matrix * n_rows + np.unique(np.linspace(0, n_rows - 1, min(LANES, n_rows)).astype(np.int64))
        stored = np.concatenate([tensor.source.read_rows(row, row + 1) for row in map(int, chosen)])
        return codec_for(tensor.type).decode(stored, tensor.n_cols)
