"""Names for the array types that cross module borders."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Float32Rows: TypeAlias = npt.NDArray[np.float32]
"""(n_rows, n_cols) float32, C-contiguous: weights of one tile of a tensor."""

Float32Row: TypeAlias = npt.NDArray[np.float32]
"""(n_cols,) float32: one number for each input column."""

ByteRows: TypeAlias = npt.NDArray[np.uint8]
"""(n_rows, row_bytes) uint8, C-contiguous: rows in the bytes that GGUF stores."""
