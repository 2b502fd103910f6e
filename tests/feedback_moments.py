"""Second moments of made-up activations, and the error that is measured with them, in float64."""

import libggml
import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Rows
from gemma4_quant.ggml import GgmlType


def correlated_moments(n_columns: int, seed: int = 0, noise: float = 0.3) -> Float32Rows:
    """E[x xᵀ] of inputs that a quarter as many causes explain, with columns of unequal size, as activations have."""
    random = np.random.default_rng(seed)
    n_causes = max(n_columns // 4, 1)
    causes = random.standard_normal((n_causes, n_columns)) * (np.arange(1, n_causes + 1) ** -0.6)[:, None]
    inputs = random.standard_normal((3 * n_columns, n_causes)) @ causes
    inputs += noise * random.standard_normal(inputs.shape)
    inputs *= np.exp(0.5 * random.standard_normal(n_columns))
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def layer_error(kind: GgmlType, data: ByteRows, rows: Float32Rows, moments: Float32Rows) -> float:
    """tr(ΔW H ΔWᵀ) of encoded rows, decoded by ggml."""
    change = libggml.decode(kind, data, rows.shape[1]).astype(np.float64) - rows
    return float(((change @ moments.astype(np.float64)) * change).sum())
