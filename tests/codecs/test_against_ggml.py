"""Block codecs against ggml's own: never a larger weighted error, the same decoding, bytes that llama.cpp accepts."""

import libggml
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from gemma4_quant.arrays import Float32Row, Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import NonFiniteError, ShapeError
from gemma4_quant.ggml import GgmlType, row_bytes

N_ROWS, N_COLS = 96, 512


def _distributions() -> dict[str, Float32Rows]:
    random = np.random.default_rng(2)
    gauss = random.standard_normal((N_ROWS, N_COLS))
    wide = {
        "gaussian": gauss,
        "heavy_tailed": random.standard_t(2, (N_ROWS, N_COLS)),
        "tiny": gauss * 1e-7,
        "sparse": gauss * (random.random((N_ROWS, N_COLS)) < 0.05),
        "constant": np.repeat(gauss[:, :1], N_COLS, axis=1),
        "positive": np.abs(gauss),
        "negative": -np.abs(gauss),
    }
    return {name: rows.astype(np.float32) for name, rows in wide.items()}


DISTRIBUTIONS = _distributions()
IMPORTANCE = (np.random.default_rng(3).gamma(0.5, 1.0, N_COLS) + 1e-3).astype(np.float32)

every_block_type = pytest.mark.parametrize("kind", libggml.BLOCK_TYPES, ids=lambda kind: kind.name)
every_distribution = pytest.mark.parametrize("name", DISTRIBUTIONS)
with_and_without_importance = pytest.mark.parametrize("importance", [None, IMPORTANCE], ids=["uniform", "importance"])


def _error(decoded: Float32Rows, rows: Float32Rows, importance: Float32Row | None) -> float:
    weights = np.ones(N_COLS) if importance is None else importance.astype(np.float64)
    return float((weights * (decoded.astype(np.float64) - rows) ** 2).sum())


@every_block_type
@every_distribution
@with_and_without_importance
def test_balanced_is_never_worse_than_ggml(kind: GgmlType, name: str, importance: Float32Row | None) -> None:
    rows = DISTRIBUTIONS[name]
    codec = codec_for(kind)
    ours = codec.decode(codec.encode(rows, importance, Effort.BALANCED), N_COLS)
    theirs = libggml.decode(kind, libggml.encode(kind, rows, importance), N_COLS)
    # Many codes fit a constant exactly before the scale is rounded to float16 (relative error up to 2^-12, and twice
    # that for a product of scales): which of them rounds luckily is chance, and below the noise is as good as equal.
    noise = 2.0**-20 * _error(np.zeros_like(rows), rows, importance) if name == "constant" else 0.0
    assert _error(ours, rows, importance) <= _error(theirs, rows, importance) * (1 + 1e-6) + noise


@every_block_type
@every_distribution
def test_llama_cpp_accepts_and_decodes_our_bytes_alike(kind: GgmlType, name: str) -> None:
    data = codec_for(kind).encode(DISTRIBUTIONS[name], None, Effort.BALANCED)
    assert libggml.is_valid(kind, data)
    np.testing.assert_array_equal(codec_for(kind).decode(data, N_COLS), libggml.decode(kind, data, N_COLS))


@every_block_type
def test_ggmls_bytes_decode_as_ggml_decodes_them(kind: GgmlType) -> None:
    data = libggml.encode(kind, DISTRIBUTIONS["heavy_tailed"], IMPORTANCE)
    np.testing.assert_array_equal(codec_for(kind).decode(data, N_COLS), libggml.decode(kind, data, N_COLS))


@every_block_type
def test_any_bytes_decode_as_ggml_decodes_them(kind: GgmlType) -> None:
    data = np.random.default_rng(4).integers(0, 256, (64, row_bytes(kind, N_COLS)), np.uint8)
    np.testing.assert_array_equal(codec_for(kind).decode(data, N_COLS), libggml.decode(kind, data, N_COLS))


@every_block_type
@pytest.mark.parametrize("effort", [Effort.FAST, Effort.BALANCED, Effort.BEST], ids=lambda effort: effort.value)
def test_bytes_do_not_depend_on_the_tile(kind: GgmlType, effort: Effort) -> None:
    rows = DISTRIBUTIONS["gaussian"]
    whole = codec_for(kind).encode(rows, IMPORTANCE, effort)
    for first, last in ((0, 1), (63, 66), (5, 70), (95, 96)):
        np.testing.assert_array_equal(codec_for(kind).encode(rows[first:last], IMPORTANCE, effort), whole[first:last])


@every_block_type
def test_zeros_encode_to_zeros(kind: GgmlType) -> None:
    codec = codec_for(kind)
    data = codec.encode(np.zeros((3, N_COLS), np.float32), IMPORTANCE, Effort.BALANCED)
    assert libggml.is_valid(kind, data)
    assert not libggml.decode(kind, data, N_COLS).any()


@pytest.mark.parametrize(
    "kind", [GgmlType.F32, GgmlType.F16, GgmlType.BF16, GgmlType.Q8_0], ids=lambda kind: kind.name
)
@every_distribution
def test_plain_equals_llama_cpps_converter(kind: GgmlType, name: str) -> None:
    rows = DISTRIBUTIONS[name]
    expected = np.ascontiguousarray(quants.quantize(rows, GGMLQuantizationType(int(kind)))).view(np.uint8)
    ours = codec_for(kind).encode(rows, None, Effort.PLAIN)
    np.testing.assert_array_equal(ours, expected.reshape(N_ROWS, row_bytes(kind, N_COLS)))


@every_block_type
def test_a_row_of_partial_blocks_is_refused(kind: GgmlType) -> None:
    with pytest.raises(ShapeError):
        codec_for(kind).encode(np.zeros((1, 48), np.float32), None, Effort.BALANCED)


def test_float16_overflow_names_the_value_and_bf16() -> None:
    with pytest.raises(NonFiniteError, match=r"70000.*bf16"):
        codec_for(GgmlType.F16).encode(np.full((1, 4), 70000, np.float32), None, Effort.PLAIN)
