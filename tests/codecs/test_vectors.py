"""Vectors of kernels against NumPy's arithmetic, value by value."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.codecs.vectors import WIDTH, both, larger, less, load, nearest_whole, smaller, spread, store, where
from gemma4_quant.compiled import compiled

FLOATS = st.floats(-1e6, 1e6, width=32)


@compiled(finite=True)
def _all_operations(a, b, number, out):
    for first in range(0, a.shape[0], WIDTH):
        x, y, n = load(a, first), load(b, first), spread(number)
        store(out[0], first, x + y)
        store(out[1], first, x - y)
        store(out[2], first, x * n)
        store(out[3], first, x / y)
        store(out[4], first, smaller(x, y))
        store(out[5], first, larger(x, y))
        store(out[6], first, nearest_whole(x))
        store(out[7], first, where(both(less(x, y), less(y, n)), x, n))


@given(st.integers(0, 1000), FLOATS)
def test_operations_are_those_of_single_floats(seed, number):
    random = np.random.default_rng(seed)
    a, b = (random.standard_normal((2, 3 * WIDTH)) * 10.0 ** random.integers(-3, 4)).astype(np.float32)
    a[:4] = 0.5, 1.5, -2.5, 1e9  # halves and what has no fraction
    b[b == 0] = 1
    n, out = np.float32(number), np.empty((8, a.size), np.float32)
    _all_operations(a, b, n, out)
    expected = [a + b, a - b, a * n, a / b, np.minimum(a, b), np.maximum(a, b), np.rint(a)]
    expected.append(np.where((a < b) & (b < n), a, n))
    for found, right in zip(out, expected, strict=True):
        np.testing.assert_array_equal(found, right)
