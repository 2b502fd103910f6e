"""Rows encoded with error feedback: less error than without, never more, valid bytes, each row on its own."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import libggml
import numpy as np
import pytest
from feedback_moments import correlated_moments, layer_error
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.feedback import FEEDBACK_TYPES, encode_with_feedback, prepare_factor
from gemma4_quant.errors import NonFiniteError, ShapeError, UnsupportedTypeError
from gemma4_quant.ggml import GgmlType, block_size, row_bytes

every_type = pytest.mark.parametrize("kind", sorted(FEEDBACK_TYPES), ids=lambda kind: kind.name)
FEW_TYPES = (GgmlType.Q4_K, GgmlType.Q2_K, GgmlType.Q3_K, GgmlType.Q4_0, GgmlType.IQ4_XS, GgmlType.Q8_0)


def normal_rows(n_rows: int, n_columns: int, seed: int = 1) -> Float32Rows:
    return (np.random.default_rng(seed).standard_normal((n_rows, n_columns)) * 0.02).astype(np.float32)


def test_all_types_with_a_code_for_each_weight_can_be_encoded() -> None:
    assert set(libggml.BLOCK_TYPES) == FEEDBACK_TYPES


@every_type
def test_errors_of_correlated_inputs_shrink_and_are_reported_as_they_are(kind: GgmlType) -> None:
    moments = correlated_moments(512)
    rows = normal_rows(48, 512)
    result = encode_with_feedback(rows, kind, prepare_factor([moments]), Effort.BALANCED)
    plain = codec_for(kind).encode(rows, np.diagonal(moments).copy(), Effort.BALANCED)
    assert libggml.is_valid(kind, result.data)
    before, after = (layer_error(kind, data, rows, moments) for data in (plain, result.data))
    assert result.error_after == pytest.approx(after, rel=1e-4)
    assert result.error_before == pytest.approx(before, rel=1e-4)
    assert after < 0.2 * before


def test_the_error_without_feedback_of_long_rows_is_estimated() -> None:
    moments = correlated_moments(1280)
    rows = normal_rows(192, 1280)
    result = encode_with_feedback(rows, GgmlType.Q4_K, prepare_factor([moments]), Effort.FAST)
    plain = codec_for(GgmlType.Q4_K).encode(rows, np.diagonal(moments).copy(), Effort.FAST)
    before, after = (layer_error(GgmlType.Q4_K, data, rows, moments) for data in (plain, result.data))
    assert result.error_after == pytest.approx(after, rel=1e-4)
    assert result.error_before == pytest.approx(before, rel=0.5)


@pytest.mark.parametrize("kind", FEW_TYPES, ids=lambda kind: kind.name)
def test_weakly_correlated_inputs_gain_too(kind: GgmlType) -> None:
    moments = correlated_moments(256, noise=3.0)
    rows = normal_rows(64, 256)
    result = encode_with_feedback(rows, kind, prepare_factor([moments]))
    plain = codec_for(kind).encode(rows, np.diagonal(moments).copy(), Effort.BALANCED)
    assert layer_error(kind, result.data, rows, moments) < 0.9 * layer_error(kind, plain, rows, moments)


def test_more_effort_means_less_error() -> None:
    factor = prepare_factor([correlated_moments(512)])
    rows = normal_rows(64, 512)
    for kind in FEW_TYPES[:4]:
        fast, balanced, best = (
            encode_with_feedback(rows, kind, factor, effort).error_after
            for effort in (Effort.FAST, Effort.BALANCED, Effort.BEST)
        )
        assert best < balanced < fast


@st.composite
def hostile_moments(draw: st.DrawFn, n_columns: int = 256) -> Float32Rows:
    """Moments of few or many tokens, with dead, loud, duplicate or opposite inputs, of any size."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    inputs = random.standard_normal((draw(st.sampled_from([1, 3, 100, 600])), n_columns))
    inputs *= random.choice([0.0, 1e-3, 1.0, 1.0, 100.0], n_columns)
    if draw(st.booleans()):
        inputs[:, 128:] = draw(st.sampled_from([1.0, -1.0])) * inputs[:, :128]
    inputs += draw(st.sampled_from([0.0, 5.0])) * random.standard_normal((len(inputs), 1))
    moments = inputs.T @ inputs / len(inputs) * 10.0 ** draw(st.integers(-20, 20))
    return moments.astype(np.float32)


@st.composite
def hostile_rows(draw: st.DrawFn, n_columns: int = 256) -> Float32Rows:
    """Rows from subnormal to large, with zeros, constants and outliers."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = random.standard_normal((4, n_columns)) * 10.0 ** draw(st.integers(-42, 2))
    rows[1] = draw(st.sampled_from([0.0, 1e-45, 0.5, -200.0]))
    rows[2, random.random(n_columns) < 0.9] = 0
    rows[3, draw(st.integers(0, n_columns - 1))] = draw(st.sampled_from([400.0, -400.0, 1e-30]))
    return rows.astype(np.float32)


@every_type
@settings(max_examples=8, deadline=None)
@given(moments=hostile_moments(), rows=hostile_rows(), effort=st.sampled_from(Effort))
def test_no_row_has_more_error_than_without_feedback(
    kind: GgmlType, moments: Float32Rows, rows: Float32Rows, effort: Effort
) -> None:
    result = encode_with_feedback(rows, kind, prepare_factor([moments]), effort)
    assert result.data.shape == (len(rows), row_bytes(kind, 256))
    assert libggml.is_valid(kind, result.data)
    assert np.isfinite(libggml.decode(kind, result.data, 256)).all()
    plain = codec_for(kind).encode(rows, np.diagonal(moments).copy(), effort)
    for row in range(len(rows)):
        one = slice(row, row + 1)
        before = layer_error(kind, plain[one], rows[one], moments)
        after = layer_error(kind, result.data[one], rows[one], moments)
        assert after <= before * (1 + 1e-5) + 1e-300


@pytest.mark.parametrize("kind", FEW_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("effort", [Effort.BALANCED, Effort.BEST], ids=str)
def test_bytes_do_not_depend_on_tiles_or_threads(kind: GgmlType, effort: Effort) -> None:
    factor = prepare_factor([correlated_moments(512)])
    rows = normal_rows(200, 512)
    whole = encode_with_feedback(rows, kind, factor, effort).data
    bounds = [0, 1, 6, 70, 71, 140, 200]
    tiles = [rows[first:stop] for first, stop in itertools.pairwise(bounds)]
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(lambda tile: encode_with_feedback(tile, kind, factor, effort).data, tiles))
    assert np.array_equal(np.concatenate(parts), whole)


def test_rows_that_may_not_be_written_stay_as_they_are() -> None:
    rows = normal_rows(3, 256)
    rows.flags.writeable = False
    before = rows.copy()
    encode_with_feedback(rows, GgmlType.Q4_K, prepare_factor([correlated_moments(256)]))
    assert np.array_equal(rows, before)


@pytest.mark.parametrize("kind", [GgmlType.Q4_0, GgmlType.Q5_1, GgmlType.Q8_0, GgmlType.IQ4_NL], ids=str)
@pytest.mark.parametrize("n_columns", [32, 64, 352])
def test_rows_need_not_fill_the_last_panel(kind: GgmlType, n_columns: int) -> None:
    moments = correlated_moments(n_columns)
    rows = normal_rows(20, n_columns)
    result = encode_with_feedback(rows, kind, prepare_factor([moments]))
    plain = codec_for(kind).encode(rows, np.diagonal(moments).copy(), Effort.BALANCED)
    after = layer_error(kind, result.data, rows, moments)
    assert result.error_after == pytest.approx(after, rel=1e-4)
    assert after < 0.5 * layer_error(kind, plain, rows, moments)


def test_blocks_on_the_diagonal_are_encoded_as_if_each_were_alone() -> None:
    blocks = [correlated_moments(256, seed) for seed in range(3)]
    rows = normal_rows(10, 768)
    kind = GgmlType.Q4_K
    whole = encode_with_feedback(rows, kind, prepare_factor(blocks))
    apart = 0.0
    for number, moments in enumerate(blocks):
        columns = slice(number * 256, number * 256 + 256)
        change = libggml.decode(kind, whole.data, 768)[:, columns].astype(np.float64) - rows[:, columns]
        apart += float(((change @ moments) * change).sum())
    assert whole.error_after == pytest.approx(apart, rel=1e-4)
    assert whole.error_after < 0.3 * whole.error_before


def test_types_without_a_code_for_each_weight_are_refused() -> None:
    factor = prepare_factor([np.eye(256, dtype=np.float32)])
    for kind in (GgmlType.IQ2_XS, GgmlType.F16):
        with pytest.raises(UnsupportedTypeError, match=kind.name):
            encode_with_feedback(normal_rows(1, 256), kind, factor)


def test_rows_that_do_not_fit_moments_or_blocks_are_refused() -> None:
    with pytest.raises(ShapeError, match="512"):
        encode_with_feedback(normal_rows(1, 256), GgmlType.Q4_K, prepare_factor([np.eye(512, dtype=np.float32)]))
    halves = prepare_factor([np.eye(128, dtype=np.float32)] * 2)
    with pytest.raises(ShapeError, match="whole blocks of Q4_K"):
        encode_with_feedback(normal_rows(1, 256), GgmlType.Q4_K, halves)
    assert block_size(GgmlType.Q4_0).n_weights == 32
    encode_with_feedback(normal_rows(1, 256), GgmlType.Q4_0, halves)


def test_weights_that_are_not_finite_are_refused_with_their_place() -> None:
    rows = normal_rows(2, 256)
    rows[1, 7] = np.nan
    with pytest.raises(NonFiniteError, match="row 1, column 7"):
        encode_with_feedback(rows, GgmlType.Q4_K, prepare_factor([np.eye(256, dtype=np.float32)]))


def test_no_rows_become_no_bytes() -> None:
    result = encode_with_feedback(normal_rows(0, 256), GgmlType.Q4_K, prepare_factor([np.eye(256, dtype=np.float32)]))
    assert result.data.shape == (0, 144)
    assert result.error_before == result.error_after == 0
