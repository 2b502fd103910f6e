"""IQ1, IQ2 and IQ3: ggml's own bytes, decoded as the gguf package does, and no input that ends the process."""

from concurrent.futures import ThreadPoolExecutor

import libggml
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from gemma4_quant.codecs import codec_for, ggml_library
from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import RunError
from gemma4_quant.ggml import GgmlType

N_ROWS, N_COLS = 16, 512
ROWS = np.random.default_rng(11).standard_t(3, (N_ROWS, N_COLS)).astype(np.float32)
IMPORTANCE = (np.random.default_rng(12).gamma(0.5, 30.0, N_COLS) + 1e-2).astype(np.float32)

every_codebook_type = pytest.mark.parametrize("kind", libggml.CODEBOOK_TYPES, ids=lambda kind: kind.name)


@every_codebook_type
def test_bytes_are_those_of_ggml_with_the_same_importance(kind: GgmlType) -> None:
    ours = codec_for(kind).encode(ROWS, IMPORTANCE, Effort.BALANCED)
    np.testing.assert_array_equal(ours, libggml.encode(kind, ROWS, IMPORTANCE))


@every_codebook_type
def test_without_importance_all_columns_weigh_the_same(kind: GgmlType) -> None:
    ours = codec_for(kind).encode(ROWS, None, Effort.BALANCED)
    np.testing.assert_array_equal(ours, libggml.encode(kind, ROWS, np.ones(N_COLS, np.float32)))


@every_codebook_type
def test_decodes_as_the_gguf_package_does(kind: GgmlType) -> None:
    data = libggml.encode(kind, ROWS, IMPORTANCE)
    expected = quants.dequantize(data, GGMLQuantizationType(int(kind)))
    np.testing.assert_array_equal(codec_for(kind).decode(data, N_COLS), expected)


@every_codebook_type
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-12, 1e-9, 1e-7, 1e-4, 2e4])
def test_no_size_of_weights_and_importance_ends_the_process(kind: GgmlType, size: float) -> None:
    rows = (ROWS / np.abs(ROWS).max() * size).astype(np.float32)
    rows[3, 7] = 65504
    importance = np.where(np.arange(N_COLS) % 3 == 0, 0, IMPORTANCE * np.float32(1e-20)).astype(np.float32)
    data = codec_for(kind).encode(rows, importance, Effort.BALANCED)
    assert libggml.is_valid(kind, data)
    assert np.isfinite(codec_for(kind).decode(data, N_COLS)).all()


def test_threads_share_the_tables_of_a_type() -> None:
    codec = codec_for(GgmlType.IQ2_XXS)
    whole = codec.encode(ROWS, IMPORTANCE, Effort.BALANCED)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: codec.encode(ROWS[i : i + 4], IMPORTANCE, Effort.BALANCED), range(0, 16, 4)))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_missing_library_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    ggml_library._library.cache_clear()
    try:
        with pytest.raises(RunError, match="pip install llama-cpp-python"):
            codec_for(GgmlType.IQ2_XXS).encode(ROWS, IMPORTANCE, Effort.BALANCED)
    finally:
        monkeypatch.undo()
        ggml_library._library.cache_clear()
