"""llama.cpp's own quantizer, called through llama-cpp-python, to measure ours against."""

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

from gemma4_quant.calibration.importance import read_importance
from gemma4_quant.ggml import FileType


def llama_quantize(source: Path, output: Path, file_type: FileType, importance: Path | None, n_threads: int) -> None:
    """Quantize `source` as llama-quantize does, with the same importance file."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(file_type)
    params.nthread = n_threads
    rows = _importance_rows(importance)
    entries = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))()  # ends with a name of NULL
    for entry, (name, values) in zip(entries, rows.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    if rows:
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(params))
    if code:
        raise RuntimeError(f"llama_model_quantize failed with {code}")


def _importance_rows(path: Path | None) -> dict[str, np.ndarray]:
    if path is None:
        return {}
    importance = read_importance(path)
    return {name: np.ascontiguousarray(importance.mean_square(name)) for name in importance.names}
