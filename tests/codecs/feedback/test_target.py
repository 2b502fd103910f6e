"""Targets corrected toward full-precision outputs: least squares over both inputs, in part or in full."""

import numpy as np
import pytest

from gemma4_quant.codecs.feedback import corrected_rows, prepare_factor
from gemma4_quant.errors import MomentsError, ShapeError

random = np.random.default_rng(1)
INPUTS = random.standard_normal((4000, 32)) @ random.standard_normal((32, 64)) + random.standard_normal((4000, 64))
SEEN = INPUTS + 0.3 * np.roll(INPUTS, 1, axis=1) + 0.1 * random.standard_normal(INPUTS.shape)
ROWS = random.standard_normal((7, 64)).astype(np.float32)
MOMENTS = (SEEN.T @ SEEN / len(SEEN)).astype(np.float32)
CROSS = (SEEN.T @ INPUTS / len(SEEN)).astype(np.float32)


def test_the_full_correction_is_the_least_squares_solution() -> None:
    corrected = corrected_rows(ROWS, prepare_factor([MOMENTS], damping=1e-6), [CROSS], strength=1.0)
    expected = np.linalg.lstsq(SEEN, INPUTS @ ROWS.T, rcond=None)[0].T
    assert np.allclose(corrected, expected, atol=1e-3)


def test_strength_goes_from_the_rows_to_the_correction_in_a_line() -> None:
    factor = prepare_factor([MOMENTS])
    full = corrected_rows(ROWS, factor, [CROSS], strength=1.0)
    assert np.array_equal(corrected_rows(ROWS, factor, [CROSS], strength=0.0), ROWS)
    assert np.allclose(corrected_rows(ROWS, factor, [CROSS], strength=0.5), (ROWS + full) / 2, atol=1e-6)


def test_inputs_that_did_not_change_need_no_correction() -> None:
    assert np.allclose(corrected_rows(ROWS, prepare_factor([MOMENTS]), [MOMENTS], strength=1.0), ROWS, atol=1e-5)


def test_blocks_are_corrected_each_with_its_own_moments() -> None:
    blocks, cross = [MOMENTS[:32, :32], MOMENTS[32:, 32:]], [CROSS[:32, :32], CROSS[32:, 32:]]
    both = corrected_rows(ROWS, prepare_factor(blocks, damping=1e-6), cross, strength=1.0)
    first = corrected_rows(ROWS[:, :32], prepare_factor(blocks[:1], damping=1e-6), cross[:1], strength=1.0)
    assert np.allclose(both[:, :32], first, atol=1e-5)


def test_other_shapes_and_values_that_are_not_finite_are_refused() -> None:
    factor = prepare_factor([MOMENTS])
    with pytest.raises(ShapeError):
        corrected_rows(ROWS[:, :32], factor, [CROSS])
    with pytest.raises(ShapeError):
        corrected_rows(ROWS, factor, [CROSS[:32, :32], CROSS[32:, 32:]])
    with pytest.raises(MomentsError):
        corrected_rows(ROWS, factor, [np.full_like(CROSS, np.nan)])
