"""The limits of each type: every honest quantization lies within, garbage outside."""

from collections.abc import Iterator

import libggml
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs import CODECS
from gemma4_quant.codecs.base import Effort
from gemma4_quant.ggml import GgmlType, is_quantized
from gemma4_quant.model import ArrayRows, Model, Tensor
from gemma4_quant.progress import SilentProgress
from gemma4_quant.verification.judgement import TensorResult
from gemma4_quant.verification.row_statistics import row_statistics, typical_error
from gemma4_quant.verification.tensors import compare_tensors

N_ROWS, N_COLS = 16, 1024
NEEDS_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M")
SLOW = ("IQ1", "IQ2", "IQ3")
BY_GGML_ALONE = ("Q1_0", "Q2_0", "Q8_1", "Q8_K")  # gguf has no decoder, or they are for activations only
KINDS = [kind for kind in GgmlType if is_quantized(kind) and (kind in CODECS or kind.name not in BY_GGML_ALONE)]


def distributions() -> dict[str, Float32Rows]:
    rng = np.random.default_rng(5)
    bell = rng.normal(size=(N_ROWS, N_COLS))
    outliers = np.where(rng.random((N_ROWS, N_COLS)) < 0.003, 30, 1)
    rows = {
        "bell": bell,
        "heavy tails": rng.standard_t(4, size=(N_ROWS, N_COLS)),
        "outliers": bell * outliers,
        "loud columns": bell * np.exp(0.7 * rng.normal(size=N_COLS)),
        "rows of zeros": bell * (rng.random((N_ROWS, 1)) < 0.8),
        "faint": bell * 0.001,
    }
    return {name: (0.02 * values).astype(np.float32) for name, values in rows.items()}


def importances() -> dict[str, Float32Row | None]:
    rng = np.random.default_rng(6)
    massive = np.exp(rng.normal(size=N_COLS))
    massive[rng.integers(0, N_COLS, 6)] *= 1e5
    uneven = np.exp(2.5 * rng.normal(size=N_COLS))
    return {"none": None, "uneven": uneven.astype(np.float32), "massive": massive.astype(np.float32)}


PAIRS = {
    "bell": "none",
    "heavy tails": "uneven",
    "outliers": "massive",
    "loud columns": "massive",
    "rows of zeros": "uneven",
    "faint": "none",
}
"""Rows and the importance they are encoded with; benchmarks/verify_limits.py tries all together."""

ROWS, IMPORTANCES = distributions(), importances()


def encoded(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None) -> Iterator[ByteRows]:
    """Yield what ggml's quantizer and ours make of rows."""
    uniform = np.ones(rows.shape[1], np.float32) if kind.name in NEEDS_IMPORTANCE else None
    if kind.name not in BY_GGML_ALONE:
        yield libggml.encode(kind, rows, uniform if importance is None else importance)
    if kind in CODECS:
        yield CODECS[kind].encode(rows, importance, Effort.BALANCED)


def result_of(
    kind: GgmlType, data: ByteRows, original: Float32Rows, shape: tuple[int, ...] | None = None
) -> TensorResult:
    """Compare encoded rows with the original ones, as one tensor."""
    shape = shape or original.shape
    original_bytes = np.ascontiguousarray(original, "<f4").view(np.uint8)
    models = [
        Model(None, {}, [Tensor("x.weight", shape, type_, ArrayRows(lambda rows=rows: rows))])  # type: ignore[arg-type, misc]
        for type_, rows in ((kind, data), (GgmlType.F32, original_bytes))
    ]
    (result,) = compare_tensors(*models, n_threads=1, progress=SilentProgress()).results
    return result


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_honest_quantizations_pass(kind: GgmlType) -> None:
    names = ("heavy tails", "outliers") if kind.name.startswith(SLOW) else tuple(PAIRS)
    for name in names:
        importance = PAIRS[name]
        for data in encoded(kind, ROWS[name], IMPORTANCES[importance]):
            assert result_of(kind, data, ROWS[name]).problems == (), (name, importance)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if not kind.name.startswith(SLOW)], ids=lambda kind: kind.name
)
def test_weights_of_any_size_pass(kind: GgmlType) -> None:
    """Scales in float16 (UE4M3 in NVFP4) round small weights away, which is no fault of a quantizer."""
    for exponent in (-7, -5, -4, -3.5, -3, -2.5, 1, 2):
        rows = ROWS["bell"] * np.float32(50 * 10**exponent)
        for data in encoded(kind, rows, None):
            assert result_of(kind, data, rows).problems == (), exponent


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_garbage_does_not_pass(kind: GgmlType) -> None:
    rows = ROWS["heavy tails"]
    for data in encoded(kind, rows, None):
        others = {
            "swapped rows": rows[[1, 0, *range(2, N_ROWS)]],
            "a row of the wrong sign": rows * np.where(np.arange(N_ROWS) == 9, -1, 1)[:, None].astype(np.float32),
            "columns in another order": rows[:, ::-1],
            "half the size": rows * np.float32(2),
            "three times the size": rows / np.float32(3),
        }
        for name, original in others.items():
            result = result_of(kind, data, np.ascontiguousarray(original))
            assert result.problems, name
            if name == "swapped rows":
                assert result.worst_row in (0, 1)
                assert "rows 0, 1 " in result.problems[0]


@pytest.mark.parametrize("kind", [GgmlType.Q8_0, GgmlType.Q6_K, GgmlType.Q5_K], ids=lambda kind: kind.name)
def test_another_training_of_the_same_model_does_not_pass(kind: GgmlType) -> None:
    """Weights that moved by about three times the type's own error."""
    share = {GgmlType.Q8_0: 0.015, GgmlType.Q6_K: 0.05, GgmlType.Q5_K: 0.11}[kind]
    rows = ROWS["bell"]
    moved = rows + share * 0.02 * np.random.default_rng(1).normal(size=rows.shape).astype(np.float32)
    for data in encoded(kind, rows, None):
        assert result_of(kind, data, moved).problems


def test_one_expert_of_the_wrong_size_is_named() -> None:
    rows = ROWS["bell"]
    scaled = rows.reshape(4, -1, N_COLS) * np.array([1, 1, 1.3, 1], np.float32)[:, None, None]
    data = CODECS[GgmlType.Q4_K].encode(scaled.reshape(rows.shape), None, Effort.FAST)
    problems = result_of(GgmlType.Q4_K, data, rows, (4, N_ROWS // 4, N_COLS)).problems
    assert any("expert 2 has weights that are 1.3 times the original's" in problem for problem in problems), problems


def test_zeros_must_stay_zeros() -> None:
    rows = ROWS["bell"].copy()
    rows[7] = 0
    data = CODECS[GgmlType.Q8_0].encode(rows, None, Effort.FAST)
    assert result_of(GgmlType.Q8_0, data, rows).problems == ()
    rows[7, 3] = 1e-3
    data = CODECS[GgmlType.Q8_0].encode(rows, None, Effort.FAST)
    rows[7] = 0
    assert "row 7 " in result_of(GgmlType.Q8_0, data, rows).problems[0]


@pytest.mark.parametrize("kind", [GgmlType.F32, GgmlType.F16, GgmlType.BF16], ids=lambda kind: kind.name)
def test_floats_are_exact_or_within_their_rounding(kind: GgmlType) -> None:
    rows = np.concatenate([ROWS["heavy tails"], ROWS["faint"] * np.float32(1e-5)])
    data = CODECS[kind].encode(rows, None, Effort.PLAIN)
    exact = result_of(kind, data, rows)
    assert exact.is_exact
    assert exact.problems == ()
    cut_off = (rows.view(np.uint32) & 0xFFFF0000).view(np.float32)
    if kind is not GgmlType.F16:
        rounded = result_of(kind, CODECS[kind].encode(cut_off, None, Effort.PLAIN), rows)
        assert not rounded.is_exact
        assert rounded.problems == ()
    changed = rows.copy()
    changed[5, 6] *= np.float32(1.02)
    assert "row 5 " in result_of(kind, data, changed).problems[0]


@given(
    seed=st.integers(0, 2**32 - 1),
    n_cols=st.integers(1, 700),
    n_rows=st.integers(1, 5),
    floor=st.sampled_from([0, 0.1]),
)
def test_statistics_are_the_plain_sums(seed: int, n_cols: int, n_rows: int, floor: float) -> None:
    rng = np.random.default_rng(seed)
    original = rng.normal(size=(n_rows, n_cols)).astype(np.float32)
    decoded = (original + 0.3 * rng.normal(size=original.shape)).astype(np.float32)
    decoded[rng.random(decoded.shape) < 0.01] = np.nan
    original[rng.random(decoded.shape) < 0.01] = np.inf
    seen = row_statistics(decoded, original, floor)
    used = np.isfinite(decoded) & np.isfinite(original)
    x, w = (np.where(used, values, 0).astype(np.float64) for values in (decoded, original))
    np.testing.assert_allclose(seen.error, ((x - w) ** 2).sum(1), rtol=1e-9)
    np.testing.assert_allclose(seen.original, (w**2).sum(1), rtol=1e-9)
    np.testing.assert_allclose(seen.decoded, (x**2).sum(1), rtol=1e-9)
    np.testing.assert_allclose(seen.product, (x * w).sum(1), rtol=1e-9)
    assert seen.n_non_finite.sum() == np.isnan(decoded).sum()
    assert seen.n_non_finite_original.sum() == np.isinf(original).sum()
    ratios = [
        [
            max(0, ((x[r, c : c + 256] - w[r, c : c + 256]) ** 2).sum() - floor**2 * min(256, n_cols - c))
            / max((w[r, c : c + 256] ** 2).sum(), 1e-300)
            for c in range(0, n_cols, 256)
        ]
        for r in range(n_rows)
    ]
    np.testing.assert_allclose(seen.worst_stretch, [max(row) for row in ratios], rtol=1e-9)
    cosines = [
        [
            1
            if (w[r, c : c + 256] ** 2).sum() <= floor**2 * min(256, n_cols - c)
            else np.dot(x[r, c : c + 256], w[r, c : c + 256])
            / max(np.linalg.norm(x[r, c : c + 256]) * np.linalg.norm(w[r, c : c + 256]), 1e-300)
            for c in range(0, n_cols, 256)
        ]
        for r in range(n_rows)
    ]
    np.testing.assert_allclose(seen.likeness, [max(row) for row in cosines], rtol=1e-9, atol=1e-12)
    middle = float(np.sqrt(sorted(np.concatenate(ratios))[(seen.histogram.sum() + 1) // 2 - 1]))
    if 2.0**-24 < middle < 2.0**7:  # the range of the histogram, but for its ends
        assert middle <= typical_error(seen.histogram) <= middle * 1.05
