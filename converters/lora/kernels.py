"""The product of an adapter's two factors, row by row: the threads of the pipeline are the only ones, and every row
is computed alike in whatever piece it is read, which a BLAS library does not promise.
"""

import numpy as np

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.compiled import compiled


@compiled()
def add_product(left: Float32Rows, right: Float32Rows, out: Float32Rows) -> None:
    """Add left · right, summed in float32 in the order of the rank, to `out`.

    left: (n_rows, rank), right: (rank, n_cols), out: (n_rows, n_cols), all contiguous.
    """
    change = np.empty(right.shape[1], np.float32)
    for row in range(left.shape[0]):
        change[:] = 0
        for k in range(left.shape[1]):
            factor = left[row, k]
            for column in range(right.shape[1]):
                change[column] += factor * right[k, column]
        for column in range(right.shape[1]):
            out[row, column] += change[column]
