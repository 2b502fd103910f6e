"""ggml's own quantizers through ctypes: the independent reference of the codec tests and of benchmarks/codecs.py."""

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.ggml import GgmlType, row_bytes

_DECODERS = {
    GgmlType.Q4_0: "q4_0",
    GgmlType.Q4_1: "q4_1",
    GgmlType.Q5_0: "q5_0",
    GgmlType.Q5_1: "q5_1",
    GgmlType.Q8_0: "q8_0",
    GgmlType.Q4_K: "q4_K",
    GgmlType.Q5_K: "q5_K",
    GgmlType.Q6_K: "q6_K",
    GgmlType.Q2_K: "q2_K",
    GgmlType.Q3_K: "q3_K",
    GgmlType.IQ4_NL: "iq4_nl",
    GgmlType.IQ4_XS: "iq4_xs",
    GgmlType.MXFP4: "mxfp4",
    GgmlType.NVFP4: "nvfp4",
    GgmlType.TQ1_0: "tq1_0",
    GgmlType.TQ2_0: "tq2_0",
    GgmlType.Q1_0: "q1_0",
    GgmlType.Q2_0: "q2_0",
}

BLOCK_TYPES = tuple(_DECODERS)

CODEBOOK_TYPES = (
    GgmlType.IQ1_S,
    GgmlType.IQ1_M,
    GgmlType.IQ2_XXS,
    GgmlType.IQ2_XS,
    GgmlType.IQ2_S,
    GgmlType.IQ3_XXS,
    GgmlType.IQ3_S,
)
"""Types whose codes are points of ggml's own tables."""


@cache
def _library() -> ctypes.CDLL:
    """Load libggml-base of the installed llama-cpp-python without importing the package, which prints."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise RuntimeError("llama-cpp-python is not installed; install the test requirements")
    folder = Path(spec.origin).parent / "lib"
    path = next(p for p in sorted(folder.glob("*ggml-base*")) if p.suffix in {".so", ".dylib", ".dll"})
    library = ctypes.CDLL(str(path), mode=getattr(os, "RTLD_LAZY", 0))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return library


def encode(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None = None) -> ByteRows:
    """Encode (n_rows, n_cols) float32 with ggml_quantize_chunk; returns (n_rows, row_bytes) uint8."""
    rows = np.ascontiguousarray(rows, np.float32)
    n_rows, n_cols = rows.shape
    out = np.zeros((n_rows, row_bytes(kind, n_cols)), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    _library().ggml_quantize_chunk(
        int(kind),
        rows.ctypes.data,
        out.ctypes.data,
        0,
        n_rows,
        n_cols,
        None if weights is None else weights.ctypes.data,
    )
    return out


def decode(kind: GgmlType, data: ByteRows, n_cols: int) -> Float32Rows:
    """Decode with ggml's dequantize_row_*; returns (n_rows, n_cols) float32."""
    data = np.ascontiguousarray(data)
    out = np.empty((len(data), n_cols), np.float32)
    function = getattr(_library(), f"dequantize_row_{_DECODERS.get(kind, kind.name.lower())}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(data.ctypes.data, out.ctypes.data, out.size)
    return out


def is_valid(kind: GgmlType, data: ByteRows) -> bool:
    """Tell whether ggml_validate_row_data accepts the bytes (it prints what it rejects)."""
    data = np.ascontiguousarray(data)
    return bool(_library().ggml_validate_row_data(int(kind), data.ctypes.data, data.nbytes))


def needs(kind: GgmlType) -> bool:
    """Tell whether ggml_quantize_chunk refuses a type without importance (ggml_quantize_requires_imatrix)."""
    library = _library()
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    return bool(library.ggml_quantize_requires_imatrix(int(kind)))
