"""Adding up squared activations, compiled: one pass over the inputs of each product.

Squares of float32 are exact in float64, in which they are summed: where a run is split changes the last bits of 53,
of which the file's float32 shows 24. The sums of a batch are gathered apart, so that one with an overflow in it
spoils nothing.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from gemma4_quant.calibration.importance import Entry
from gemma4_quant.calibration.output_matrix import OUTPUT_WEIGHTS
from gemma4_quant.compiled import compiled
from gemma4_quant.errors import NonFiniteError, RunError, listed
from gemma4_quant.runner.observer import Product

FEWEST_INPUTS = 16
"""Products with fewer inputs are not counted, as in llama-imatrix (collect_imatrix)."""


@compiled()
def _add_rows(inputs: npt.NDArray[np.float32], sums: npt.NDArray[np.float64]) -> None:
    """Add the squares of inputs (n_rows, n_in) to sums (n_in,)."""
    for i in range(inputs.shape[0]):
        row = inputs[i]
        for j in range(sums.size):
            x = np.float64(row[j])
            sums[j] += x * x


@compiled()
def _add_routed(
    inputs: npt.NDArray[np.float32],
    experts: npt.NDArray[np.int32],
    sums: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
) -> bool:
    """Add the squares of inputs (n_tokens, n_used or 1, n_in) to their experts; False if one does not exist."""
    n_tokens, n_used = experts.shape
    for token in range(n_tokens):
        for choice in range(n_used):
            expert = experts[token, choice]
            if expert < 0 or expert >= counts.size:
                return False
            row = inputs[token, choice % inputs.shape[1]]
            counts[expert] += 1
            total = sums[expert]
            for j in range(total.size):
                x = np.float64(row[j])
                total[j] += x * x
    return True


class _Running:
    """Sums of one weight: of the current batch, and of all batches before it."""

    def __init__(self, n_matrices: int, n_in: int) -> None:
        self.batch = np.zeros((n_matrices, n_in), np.float64)
        self.sums = np.zeros((n_matrices, n_in), np.float64)
        self.counts = np.zeros(n_matrices, np.int64)

    def fold(self) -> None:
        """Add the batch's sums to the total."""
        self.sums += self.batch
        self.batch[:] = 0


class _SharedInput:
    """The sums of the last dense input, which q, k and v, or gate and up, have in common."""

    def __init__(self) -> None:
        self._input_id = 0
        self._served: set[str] = set()
        self._sums = np.empty(0)

    def sums(self, product: Product, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the sums of squares of inputs (n_rows, n_in), computed once for all weights that share them.

        A weight that comes again belongs to the next evaluation, whose input may lie where the last one did.
        """
        if product.input_id == 0 or product.input_id != self._input_id or product.weight in self._served:
            self._input_id, self._served = product.input_id, set()
            self._sums = np.zeros(inputs.shape[1], np.float64)
            _add_rows(inputs, self._sums)
        self._served.add(product.weight)
        return self._sums


class Accumulator:
    """Observer that gathers what llama-imatrix gathers: inputs of the layers' products, and of the experts'.

    process_output: also the product with the output matrix. Gemma 4 ties it to the embedding, so its statistics
    bear the name `token_embd.weight` (llama-imatrix looks for an untied `output.weight` only). earlier: statistics to
    go on from, as `entries` returned them.

    Memory: two float64 sums for each input column of each matrix.
    """

    def __init__(self, *, process_output: bool = False, earlier: Mapping[str, Entry] | None = None) -> None:
        """Begin with nothing counted, or with what an earlier run counted."""
        self._process_output = process_output
        self._running: dict[str, _Running] = {}
        self._shared = _SharedInput()
        for name, entry in (earlier or {}).items():
            running = self._running[name] = _Running(*entry.sums.shape)
            running.sums += entry.sums
            running.counts += np.rint(entry.counts).astype(np.int64)

    def wants(self, product: Product) -> bool:
        """Choose products as llama-imatrix's collect_imatrix does; see Observer."""
        if product.is_routed:
            return True
        if product.n_inputs < FEWEST_INPUTS:
            return False
        return product.weight.startswith("blk.") or (self._process_output and product.weight in OUTPUT_WEIGHTS)

    def observe(
        self, product: Product, inputs: npt.NDArray[np.float32], experts: npt.NDArray[np.int32] | None
    ) -> None:
        """Add the inputs of a product; see Observer."""
        running = self._running.get(product.weight)
        if running is None:
            running = self._running[product.weight] = _Running(product.n_matrices, product.n_in)
        if running.sums.shape != (product.n_matrices, product.n_in):
            raise RunError(f"{product.weight} is multiplied with inputs of changing size; nothing was written")
        if experts is None:
            self._add_dense(running, product, inputs)
        elif not _add_routed(inputs, experts, running.batch, running.counts):
            raise RunError(f"{product.weight}: the router chose an expert that does not exist; is the model damaged?")

    def _add_dense(self, running: _Running, product: Product, inputs: npt.NDArray[np.float32]) -> None:
        outer, n_inputs = inputs.shape[:2], inputs.shape[2]
        n_matrices = len(running.counts)
        if outer == (1, 1) and n_matrices == 1:
            running.batch[0] += self._shared.sums(product, inputs[0, 0])
            running.counts[0] += n_inputs
            return
        for i in range(outer[0]):
            for j in range(outer[1]):
                matrix = (i * outer[1] + j) % n_matrices
                _add_rows(inputs[i, j], running.batch[matrix])
                running.counts[matrix] += n_inputs

    def end_batch(self) -> None:
        """End a batch of chunks. Raises NonFiniteError naming the weights whose inputs were NaN or infinite."""
        bad = [name for name, running in self._running.items() if not np.isfinite(running.batch).all()]
        if bad:
            raise NonFiniteError(f"the inputs of {listed(sorted(bad))} are NaN or infinite; is the model damaged?")
        for running in self._running.values():
            running.fold()

    @property
    def n_inputs(self) -> int:
        """Most activations counted for any matrix; tokens, unless every matrix is an expert."""
        return max((int(running.counts.max()) for running in self._running.values()), default=0)

    def counts(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return how many activations of each matrix were counted, by the weight's name."""
        return {name: running.counts.astype(np.float64) for name, running in self._running.items()}

    def entries(self) -> dict[str, Entry]:
        """Return the statistics of the batches that have ended, as copies."""
        return {
            name: Entry(running.sums.copy(), running.counts.astype(np.float64))
            for name, running in self._running.items()
        }
