"""Adding up squared activations, compiled: one pass over the inputs of each product."""

import numpy as np
import numpy.typing as npt

from gemma4_quant.calibration.importance import Entry
from gemma4_quant.compiled import compiled
from gemma4_quant.errors import NonFiniteError, RunError, listed
from gemma4_quant.runner.observer import Product

_FEWEST_INPUTS = 16  # llama-imatrix skips products with fewer inputs (collect_imatrix)
_OUTPUT_WEIGHTS = frozenset({"output.weight", "token_embd.weight"})


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
    """Sums of one weight so far, float64, so that long calibrations lose nothing."""

    def __init__(self, n_matrices: int, n_in: int) -> None:
        self.sums = np.zeros((n_matrices, n_in), np.float64)
        self.counts = np.zeros(n_matrices, np.int64)


class Accumulator:
    """Observer that gathers what llama-imatrix gathers: inputs of the layers' products, and of the experts'.

    process_output: also the product with the output matrix. Gemma 4 ties it to the embedding, so its statistics
    bear the name `token_embd.weight` (llama-imatrix looks for an untied `output.weight` only).
    """

    def __init__(self, *, process_output: bool = False) -> None:
        """Begin with nothing counted."""
        self._process_output = process_output
        self._running: dict[str, _Running] = {}

    def wants(self, product: Product) -> bool:
        """Choose products as llama-imatrix's collect_imatrix does; see Observer."""
        if product.is_routed:
            return True
        if product.n_inputs < _FEWEST_INPUTS:
            return False
        return product.weight.startswith("blk.") or (self._process_output and product.weight in _OUTPUT_WEIGHTS)

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
            self._add_dense(running, inputs)
        elif not _add_routed(inputs, experts, running.sums, running.counts):
            raise RunError(f"{product.weight}: the router chose an expert that does not exist; is the model damaged?")

    @staticmethod
    def _add_dense(running: _Running, inputs: npt.NDArray[np.float32]) -> None:
        outer, n_inputs, n_in = inputs.shape[:2], inputs.shape[2], inputs.shape[3]
        n_matrices = len(running.counts)
        for i in range(outer[0]):
            for j in range(outer[1]):
                matrix = (i * outer[1] + j) % n_matrices
                _add_rows(inputs[i, j], running.sums[matrix, :n_in])
                running.counts[matrix] += n_inputs

    @property
    def n_inputs(self) -> int:
        """Most activations counted for any matrix; tokens, unless every matrix is an expert."""
        return max((int(running.counts.max()) for running in self._running.values()), default=0)

    def check_finite(self) -> None:
        """Raise NonFiniteError naming the weights whose inputs have been NaN or infinite."""
        bad = [name for name, running in self._running.items() if not np.isfinite(running.sums).all()]
        if bad:
            raise NonFiniteError(f"the inputs of {listed(sorted(bad))} are NaN or infinite; is the model damaged?")

    def entries(self) -> dict[str, Entry]:
        """Return the statistics so far, rounded to float32 as the file stores them."""
        return {
            name: Entry(running.sums.astype(np.float32), running.counts.astype(np.float32))
            for name, running in self._running.items()
        }
