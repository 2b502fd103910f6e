"""Products of rows with a strip: as numpy's, and each row as if it were alone."""

import numpy as np
import pytest

from gemma4_quant.codecs.feedback.matrix_tiles import STRIP, add_product


@pytest.mark.parametrize("n_rows", [0, 1, 5, 6, 13, 192])
@pytest.mark.parametrize("n", [0, 1, 16, 300])
def test_products_are_added_to_what_is_there(n_rows: int, n: int) -> None:
    random = np.random.default_rng(1)
    left = random.standard_normal((n_rows, n + 3)).astype(np.float32)[:, 2 : 2 + n]
    packed = random.standard_normal(n * STRIP + 7).astype(np.float32)
    out = random.standard_normal((n_rows, 40)).astype(np.float32)
    around = out.copy()
    expected = out[:, 8 : 8 + STRIP] + left.astype(np.float64) @ packed[7:].reshape(n, STRIP)
    add_product(left, packed, 7, out[:, 8 : 8 + STRIP])
    assert np.allclose(out[:, 8 : 8 + STRIP], expected, rtol=1e-5, atol=1e-4)
    around[:, 8 : 8 + STRIP] = out[:, 8 : 8 + STRIP]
    assert np.array_equal(out, around)


def test_a_row_does_not_depend_on_those_around_it() -> None:
    random = np.random.default_rng(2)
    left = random.standard_normal((20, 256)).astype(np.float32)
    packed = random.standard_normal(256 * STRIP).astype(np.float32)
    whole = np.zeros((20, STRIP), np.float32)
    add_product(left, packed, 0, whole)
    for row in range(20):
        alone = np.zeros((1, STRIP), np.float32)
        add_product(left[row : row + 1], packed, 0, alone)
        assert np.array_equal(alone[0], whole[row])
