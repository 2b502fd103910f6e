"""The nearest code of every grid, against a search through its values."""

from typing import Any

import numpy as np
import pytest
from gguf.quants import IQ4_NL, MXFP4

from gemma4_quant.codecs.grids import FP4, IQ4, SIGNS, Grid, nearest, uniform
from gemma4_quant.compiled import compiled

GRIDS: dict[str, tuple[Grid, list[int]]] = {
    "-8..7": (uniform(-8, 7), list(range(-8, 8))),
    "-1..2": (uniform(-1, 2), [-1, 0, 1, 2]),
    "IQ4": (IQ4, list(IQ4_NL.kvalues)),
    "FP4": (FP4, list(MXFP4.kvalues)),
    "signs": (SIGNS, [-1, 1]),
}


@compiled(finite=True)
def _nearest_of_all(values: Any, grid: Grid, out: Any) -> None:
    for i in range(values.shape[0]):
        out[i] = nearest(values[i], grid)


@pytest.mark.parametrize("name", GRIDS)
def test_the_nearest_code_is_the_nearest_of_all(name: str) -> None:
    grid, codes = GRIDS[name]
    values = np.concatenate([np.arange(-140, 140, 0.37), np.arange(-16, 16, 0.0917), [0.0]]).astype(np.float32)
    ours = np.empty_like(values)
    _nearest_of_all(values, grid, ours)
    assert set(ours) == {np.float32(code) for code in codes}
    least = np.abs(values[:, None] - np.array(codes, np.float32)).min(axis=1)
    np.testing.assert_array_equal(np.abs(values - ours), least)
    assert [nearest(value, grid) for value in values[::50]] == list(ours[::50])
