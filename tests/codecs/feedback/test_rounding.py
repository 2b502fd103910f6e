"""Codes chosen with feedback and descent, beside the best of all codes; blocks taken apart and put together."""

import itertools

import libggml
import numpy as np
import pytest
from feedback_moments import correlated_moments

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.feedback import FEEDBACK_TYPES, prepare_factor
from gemma4_quant.codecs.feedback.block_parts import SCALAR_TYPES, Parts, empty_parts, read_blocks, write_blocks
from gemma4_quant.codecs.feedback.rounding import descend, round_with_feedback
from gemma4_quant.ggml import GgmlType

every_type = pytest.mark.parametrize("kind", sorted(FEEDBACK_TYPES), ids=lambda kind: kind.name)


def rows_of(n_rows: int, n_columns: int) -> Float32Rows:
    return np.random.default_rng(1).standard_normal((n_rows, n_columns)).astype(np.float32)


@every_type
def test_blocks_taken_apart_and_put_together_are_the_same(kind: GgmlType) -> None:
    rows = rows_of(5, 512)
    data = codec_for(kind).encode(rows, None, Effort.FAST)
    form = SCALAR_TYPES[kind].form
    parts = empty_parts(5, 512, form)
    n_bytes = data.shape[1] // 2
    read_blocks(data[:, :n_bytes].copy(), form, 0, parts)
    read_blocks(data[:, n_bytes:].copy(), form, 256, parts)
    again = np.full_like(data, 0xA5)
    write_blocks(parts, form, again)
    assert np.array_equal(again, data)
    assert np.allclose(decoded(parts, kind), libggml.decode(kind, data, 512), atol=1e-6)


def decoded(parts: Parts, kind: GgmlType) -> Float32Rows:
    """d·s·code − dmin·q."""
    form = SCALAR_TYPES[kind].form
    per_group = np.repeat(parts.supers, form.per_unit, axis=2) * parts.subs
    a, b = np.repeat(per_group, form.size, axis=2)
    return a * parts.codes - b


def rounded(kind: GgmlType, rows: Float32Rows, moments: Float32Rows) -> tuple[Parts, Float32Rows, Float32Rows]:
    """Round a panel with feedback to the scales that the encoder finds; returns parts, weights and gradient."""
    scalar, factor = SCALAR_TYPES[kind], prepare_factor([moments])
    (panel,) = factor.panels
    parts = empty_parts(*rows.shape, scalar.form)
    read_blocks(codec_for(kind).encode(rows, panel.weights, Effort.BALANCED), scalar.form, 0, parts)
    out, rest = np.empty_like(rows), np.empty_like(rows)
    round_with_feedback(rows.copy(), panel.root, panel.inverse, scalar.form, scalar.grid, 0, parts, out, rest)
    assert np.allclose(out, decoded(parts, kind), atol=1e-5)
    assert np.allclose(rest, (out - rows) @ panel.root, atol=1e-4)
    return parts, out, (out - rows) @ panel.moments


@pytest.mark.parametrize(
    "kind", [GgmlType.Q4_K, GgmlType.Q3_K, GgmlType.Q5_1, GgmlType.IQ4_NL, GgmlType.MXFP4], ids=str
)
def test_descent_never_raises_the_error_and_keeps_its_gradient(kind: GgmlType) -> None:
    moments = correlated_moments(256)
    rows = rows_of(30, 256)
    (panel,) = prepare_factor([moments]).panels
    parts, out, gradient = rounded(kind, rows, moments)
    error = ((out - rows) * gradient).sum(axis=1)
    scalar = SCALAR_TYPES[kind]
    for sweep in range(4):
        n_moves = descend(panel.moments, scalar.form, scalar.grid, (sweep, sweep + 1), 0, parts, out, gradient)
        assert sweep or n_moves > 0
        assert np.allclose(gradient, (out - rows) @ panel.moments, atol=2e-3 * np.abs(gradient).max())
        assert np.allclose(out, decoded(parts, kind), atol=1e-4)
        lower = ((out - rows).astype(np.float64) @ panel.moments * (out - rows)).sum(axis=1)
        assert (lower <= error * (1 + 1e-5)).all()
        error = lower


def test_feedback_and_descent_come_near_to_the_best_of_all_codes() -> None:
    """Five columns matter; the others are dead, so that all codes of the five can be tried."""
    n_live, kind = 5, GgmlType.Q2_0
    random = np.random.default_rng(6)
    live = correlated_moments(32, noise=0.2)[:n_live, :n_live]
    moments = np.zeros((64, 64), np.float32)
    moments[:n_live, :n_live] = live
    rows = np.zeros((40, 64), np.float32)
    rows[:, :n_live] = random.standard_normal((40, n_live))
    parts, out, gradient = rounded(kind, rows, moments)
    scalar = SCALAR_TYPES[kind]
    (panel,) = prepare_factor([moments]).panels
    own = panel.moments[:n_live, :n_live].astype(np.float64)
    scale = np.repeat(parts.supers[0], 1, axis=1)[:, :1]
    every = np.array(list(itertools.product(range(-1, 3), repeat=n_live)), np.float64)
    change = scale[:, :, None] * every[None] - rows[:, None, :n_live]
    best = np.einsum("rci,ij,rcj->rc", change, own, change).min(axis=1)
    independent = (
        np.clip(np.rint(rows[:, :n_live] / np.where(scale == 0, 1, scale)), -1, 2) * scale - rows[:, :n_live]
    )
    without = np.einsum("ri,ij,rj->r", independent, own, independent)
    first = ((out - rows) * gradient).sum(axis=1)
    assert (first >= best - 1e-5).all()
    assert first.sum() < without.sum()
    # With scales that stay (an odd sweep moves codes only), no codes can be better than the best.
    descend(panel.moments, scalar.form, scalar.grid, (1, 3), 0, parts, out, gradient)
    after = ((out - rows) * gradient).sum(axis=1)
    assert (after >= best - 1e-5).all()
    assert after.sum() < best.sum() + 0.5 * (without.sum() - best.sum())
