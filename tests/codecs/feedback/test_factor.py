"""Factors of second moments: what they stand for, and second moments that are odd or damaged."""

import numpy as np
import pytest
from feedback_moments import correlated_moments

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.codecs.feedback import encode_with_feedback, prepare_factor
from gemma4_quant.codecs.feedback.factor import FactorBlock, lower_triangle_at, triangle_at
from gemma4_quant.errors import MomentsError, ShapeError
from gemma4_quant.ggml import GgmlType


def root_of(block: FactorBlock) -> np.ndarray:
    """R of a block, read from the strips of R; those of Rᵀ must hold the same."""
    width = block.width
    root, transposed = np.zeros((width, width)), np.zeros((width, width))
    for strip in range(width // 16):
        columns = slice(strip * 16, strip * 16 + 16)
        upper = block.upper[triangle_at(strip) : triangle_at(strip + 1)]
        lower = block.lower[lower_triangle_at(strip, width) : lower_triangle_at(strip + 1, width)]
        root[: columns.stop, columns] = upper.reshape(-1, 16)
        transposed[columns.start :, columns] = lower.reshape(-1, 16)
    assert np.array_equal(root.T, transposed)
    return root


@pytest.mark.parametrize("width", [32, 256, 288, 768])
def test_the_factor_gives_back_the_damped_moments(width: int) -> None:
    moments = correlated_moments(width)
    factor = prepare_factor([moments], damping=0.05)
    damped = moments + 0.05 * np.diagonal(moments).mean() * np.eye(width)
    root = root_of(factor.blocks[0])
    assert np.array_equal(root, np.triu(root))
    assert np.abs(root @ root.T * factor.unit - damped).max() < 1e-5 * damped.max()
    assert np.abs(factor.blocks[0].moments * factor.unit - damped).max() < 1e-6 * damped.max()
    for panel in factor.panels:
        own = slice(panel.first, panel.first + panel.width)
        assert np.allclose(panel.root, root[own, own], atol=1e-7)
        assert np.allclose(panel.inverse @ panel.root, np.eye(panel.width), atol=1e-4)
        # What later columns cannot make up for: the Schur complement, the inverse of a part of the inverse.
        beyond = np.linalg.inv(np.linalg.inv(damped[own.start :, own.start :])[: panel.width, : panel.width])
        assert np.abs(panel.moments * factor.unit - beyond).max() < 1e-4 * beyond.max()
        assert panel.energy == pytest.approx((root[:, own] ** 2).sum(), rel=1e-5)


def test_weights_of_the_scale_search_are_those_of_gptq() -> None:
    moments = correlated_moments(64)
    factor = prepare_factor([moments])
    damped = moments.astype(np.float64) / factor.unit + factor.added * np.eye(64)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T  # H⁻¹ = UᵀU
    (panel,) = factor.panels
    assert np.allclose(panel.weights, 1 / np.diagonal(upper) ** 2, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_size_of_the_moments_does_not_matter(size: float) -> None:
    moments = correlated_moments(256)
    rows = np.random.default_rng(2).standard_normal((5, 256)).astype(np.float32)
    scaled = (moments.astype(np.float64) * 2.0 ** np.round(np.log2(size))).astype(np.float32)
    usual = encode_with_feedback(rows, GgmlType.Q4_K, prepare_factor([moments]))
    other = encode_with_feedback(rows, GgmlType.Q4_K, prepare_factor([scaled]))
    assert np.array_equal(usual.data, other.data)
    assert other.error_after == pytest.approx(usual.error_after * float(scaled[0, 0]) / float(moments[0, 0]))


def test_dead_inputs_get_the_damping_alone() -> None:
    moments = correlated_moments(256)
    moments[[3, 200]] = 0
    moments[:, [3, 200]] = 0
    factor = prepare_factor([moments])
    block = factor.blocks[0].moments
    assert block[3, 3] == block[200, 200] == np.float32(factor.added)
    rows = np.random.default_rng(3).standard_normal((4, 256)).astype(np.float32)
    result = encode_with_feedback(rows, GgmlType.Q4_K, factor)
    assert np.isfinite([result.error_before, result.error_after]).all()
    assert result.error_after < result.error_before


def test_moments_of_fewer_tokens_than_inputs_and_of_duplicate_inputs_can_be_factored() -> None:
    random = np.random.default_rng(4)
    inputs = random.standard_normal((10, 512)).astype(np.float32)
    inputs[:, 256:] = inputs[:, :256]
    factor = prepare_factor([inputs.T @ inputs / 10])
    assert factor.damping == 0.1
    assert all(np.isfinite(panel.inverse).all() for panel in factor.panels)


def test_moments_of_zeros_count_as_the_identity() -> None:
    factor = prepare_factor([np.zeros((256, 256), np.float32)])
    assert np.array_equal(factor.blocks[0].moments, np.eye(256, dtype=np.float32))
    rows = np.random.default_rng(5).standard_normal((3, 256)).astype(np.float32)
    result = encode_with_feedback(rows, GgmlType.Q6_K, factor)
    assert result.error_before == result.error_after == 0


def test_indefinite_moments_are_damped_until_they_can_be_factored() -> None:
    moments = np.eye(64, dtype=np.float32)
    moments[0, 1] = moments[1, 0] = 3.0
    factor = prepare_factor([moments])
    assert factor.damping > 2  # the least eigenvalue is −2
    assert np.isfinite(factor.blocks[0].upper).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_moments_that_are_not_finite_are_refused_with_their_place(bad: float) -> None:
    moments = np.eye(64, dtype=np.float32)
    moments[7, 9] = bad
    with pytest.raises(MomentsError, match=r"\[7, 9\] of block 1"):
        prepare_factor([np.eye(64, dtype=np.float32), moments])


def test_moments_that_are_not_symmetric_are_refused() -> None:
    moments = correlated_moments(512)
    moments[300, 5] *= 1.5
    with pytest.raises(MomentsError, match="not symmetric"):
        prepare_factor([moments])


def test_negative_mean_squares_are_refused() -> None:
    moments = np.eye(64, dtype=np.float32)
    moments[5, 5] = -1
    with pytest.raises(MomentsError, match="input 5"):
        prepare_factor([moments])


@pytest.mark.parametrize("shape", [(64, 32), (33, 33), (0, 0), (64,)], ids=str)
def test_blocks_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        prepare_factor([np.zeros(shape, np.float32)])


def test_no_blocks_and_no_damping_are_refused() -> None:
    with pytest.raises(ShapeError, match="no blocks"):
        prepare_factor([])
    with pytest.raises(ValueError, match="positive"):
        prepare_factor([np.eye(32, dtype=np.float32)], damping=0)


def test_a_factor_of_several_blocks_is_that_of_each() -> None:
    blocks: list[Float32Rows] = [correlated_moments(256, seed) for seed in range(2)] + [correlated_moments(96, 2)]
    factor = prepare_factor(blocks)
    assert factor.n_in == 608
    assert [(block.first, block.width) for block in factor.blocks] == [(0, 256), (256, 256), (512, 96)]
    assert np.array_equal(factor.importance, np.concatenate([np.diagonal(block) for block in blocks]))
    mean = float(factor.importance.mean())
    for block, moments in zip(factor.blocks, blocks, strict=True):
        root = root_of(block)
        damped = moments + 0.1 * mean * np.eye(block.width)
        assert np.abs(root @ root.T * factor.unit - damped).max() < 1e-5 * damped.max()
