"""Any finite rows, in every type: bytes that llama.cpp accepts and that decode to finite weights, or clear errors."""

import libggml
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_quant.arrays import Float32Row, Float32Rows
from gemma4_quant.codecs import CODECS, codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import NonFiniteError, ShapeError
from gemma4_quant.ggml import GgmlType, row_bytes

N_COLS = 256

every_type = pytest.mark.parametrize("kind", sorted(CODECS), ids=lambda kind: kind.name)


@st.composite
def hostile_rows(draw: st.DrawFn) -> Float32Rows:
    """Rows of some size, from subnormal to large, with blocks of zeros, constants and outliers."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = 10.0 ** draw(st.integers(-42, 3))
    rows = random.standard_normal((draw(st.integers(1, 3)), N_COLS)) * size
    rows[:, random.random(N_COLS) < draw(st.sampled_from([0.0, 0.5, 0.99]))] = 0
    start = draw(st.integers(0, N_COLS - 32))
    rows[0, start : start + 32] = draw(st.sampled_from([0.0, -0.0, size, -size, 1e-45]))
    for _ in range(draw(st.integers(0, 3))):
        rows[-1, draw(st.integers(0, N_COLS - 1))] = draw(st.sampled_from([2600.0, -2600.0, 1.0, 1e-38]))
    return rows.astype(np.float32)


@st.composite
def hostile_importance(draw: st.DrawFn) -> Float32Row | None:
    """No importance, or one with zeros, with a single column, or of extreme size."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    importance = random.gamma(0.3, 1.0, N_COLS) * 10.0 ** draw(st.integers(-38, 30))
    shape = draw(st.sampled_from(["absent", "all", "half", "one", "none"]))
    if shape == "absent":
        return None
    kept = {"all": N_COLS, "half": N_COLS // 2, "one": 1, "none": 0}[shape]
    importance[kept:] = 0
    return importance.astype(np.float32)


@every_type
@settings(max_examples=12, deadline=None)
@given(rows=hostile_rows(), importance=hostile_importance(), effort=st.sampled_from(Effort))
def test_finite_rows_become_valid_bytes_and_finite_weights(
    kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort
) -> None:
    codec = codec_for(kind)
    data = codec.encode(rows, importance, effort)
    assert data.shape == (len(rows), row_bytes(kind, N_COLS))
    assert libggml.is_valid(kind, data)
    decoded = codec.decode(data, N_COLS)
    assert np.isfinite(decoded).all()
    # Not even an unimportant weight comes back several times larger than the largest of its row.
    assert (np.abs(decoded).max(axis=1) <= 4 * np.abs(rows).max(axis=1) + 1e-6).all()


@every_type
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_with_its_place(kind: GgmlType, bad: float) -> None:
    rows = np.ones((3, N_COLS), np.float32)
    rows[2, 17] = bad
    with pytest.raises(NonFiniteError, match="row 2, column 17"):
        codec_for(kind).encode(rows, None, Effort.BALANCED)


@pytest.mark.parametrize("kind", sorted(set(CODECS) - {GgmlType.F32, GgmlType.BF16}), ids=lambda kind: kind.name)
def test_a_weight_beyond_the_scale_is_refused_with_its_value(kind: GgmlType) -> None:
    rows = np.ones((1, N_COLS), np.float32)
    rows[0, 5] = 1e30
    with pytest.raises(NonFiniteError, match=r"1e\+30 .* column 5.*use bf16 or f32"):
        codec_for(kind).encode(rows, None, Effort.BALANCED)


@pytest.mark.parametrize("kind", sorted(set(CODECS) - {GgmlType.F32, GgmlType.F16, GgmlType.BF16}), ids=str)
def test_importance_of_another_length_is_refused(kind: GgmlType) -> None:
    with pytest.raises(ShapeError, match=str(N_COLS)):
        codec_for(kind).encode(np.ones((1, N_COLS), np.float32), np.ones(N_COLS - 1, np.float32), Effort.BALANCED)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("kind", sorted(set(CODECS) - {GgmlType.F32, GgmlType.F16, GgmlType.BF16}), ids=str)
def test_importance_that_is_no_mean_square_is_refused(kind: GgmlType, bad: float) -> None:
    importance = np.ones(N_COLS, np.float32)
    importance[9] = bad
    with pytest.raises(NonFiniteError, match="column 9"):
        codec_for(kind).encode(np.ones((1, N_COLS), np.float32), importance, Effort.BALANCED)
