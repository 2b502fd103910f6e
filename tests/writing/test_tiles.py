"""Tiles of tensors of any shape: bounded memory, exact copies, and no NaN that slips through."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.lanes import LANES
from gemma4_quant.errors import NonFiniteError, ShapeError
from gemma4_quant.ggml import GgmlType
from gemma4_quant.metadata import string
from gemma4_quant.model import ArrayRows, DataFile, FileRows, Tensor
from gemma4_quant.writing.finite import first_not_finite
from gemma4_quant.writing.plan import Assignment, make_plan
from gemma4_quant.writing.tiles import MAX_COLUMNS, TILE_WEIGHTS, tiles_of
from gemma4_quant.writing.writer import write_gguf

FLOATS = {GgmlType.F64: "<f8", GgmlType.F32: "<f4", GgmlType.F16: "<f2"}


def sparse_tensor(path: Path, shape: tuple[int, ...], kind: GgmlType = GgmlType.F32) -> Tensor:
    """Return a tensor of zeros in a file that takes no room."""
    tensor = Tensor("wide.weight", shape, kind, ArrayRows(lambda: np.zeros((0, 0), np.uint8)))
    with path.open("wb") as file:
        file.truncate(tensor.n_bytes)
    return Tensor(tensor.name, shape, kind, FileRows(DataFile(path), 0, tensor.n_bytes // tensor.n_rows))


def peak_of_writing(tensor: Tensor, kind: GgmlType, output: Path) -> int:
    """Write a tensor as a file and return the most memory that Python and numpy had on the way."""
    plan = make_plan({"general.architecture": string("gemma4")}, [Assignment(tensor, kind)])
    write_gguf(plan, output, effort=Effort.PLAIN, n_threads=2)  # compiles
    tracemalloc.start()
    try:
        write_gguf(plan, output, effort=Effort.PLAIN, n_threads=2)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_row_of_any_length_is_copied_in_little_memory(tmp_path: Path) -> None:
    tensor = sparse_tensor(tmp_path / "row.bin", (1, 1 << 26))
    assert peak_of_writing(tensor, GgmlType.F32, tmp_path / "out.gguf") < 8 << 20
    assert (tmp_path / "out.gguf").stat().st_size > 1 << 28


def test_wide_rows_are_encoded_one_by_one(tmp_path: Path) -> None:
    tensor = sparse_tensor(tmp_path / "rows.bin", (40, 1 << 20), GgmlType.BF16)
    assert peak_of_writing(tensor, GgmlType.Q8_0, tmp_path / "out.gguf") < 100 << 20


def test_a_row_too_long_to_encode_is_refused(tmp_path: Path) -> None:
    tensor = sparse_tensor(tmp_path / "row.bin", (1, 2 * MAX_COLUMNS))
    with pytest.raises(ShapeError, match="columns"):
        peak_of_writing(tensor, GgmlType.F16, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("out*"))


@given(
    n_matrices=st.integers(1, 3),
    n_rows=st.integers(1, 500),
    n_cols=st.sampled_from([1, 31, 256, 8960, 21504, TILE_WEIGHTS // 2, TILE_WEIGHTS + 1, 1 << 30]),
)
def test_tiles_have_about_as_many_weights_as_wanted(n_matrices: int, n_rows: int, n_cols: int) -> None:
    shape = (n_matrices, n_rows, n_cols)
    tensor = Tensor("t", shape, GgmlType.F32, ArrayRows(lambda: np.zeros((0, 0), np.uint8)))
    for tile in tiles_of(tensor):
        n = tile.stop - tile.start
        assert n == 1 or n * n_cols <= TILE_WEIGHTS
        assert n <= LANES or n % LANES == 0 or tile.stop % n_rows == 0


@given(
    kind=st.sampled_from(list(FLOATS)),
    n=st.integers(1, 70),
    at=st.integers(0, 69),
    bad=st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]),
    seed=st.integers(0, 99),
)
def test_the_first_weight_that_is_not_finite_is_found(kind: GgmlType, n: int, at: int, bad: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = (random.standard_normal(n) * 10.0 ** random.integers(-8, 4, n)).astype(FLOATS[kind])
    assert first_not_finite(values.view(np.uint8), kind) is None
    values[at % n] = bad
    assert first_not_finite(values.view(np.uint8), kind) == at % n


def test_every_bfloat16_is_judged_as_numpy_judges_it() -> None:
    bits = np.arange(1 << 16, dtype="<u2")
    is_finite = np.isfinite((bits.astype("<u4") << 16).view("<f4"))
    found = [first_not_finite(bits[i : i + 1].view(np.uint8), GgmlType.BF16) is None for i in range(0, 1 << 16, 7)]
    assert found == is_finite[::7].tolist()


def test_a_copied_tensor_with_nan_in_a_later_piece_is_refused_with_its_place(tmp_path: Path) -> None:
    rows = np.zeros((3, 1 << 18), "<f4")
    rows[2, 7] = np.nan
    (tmp_path / "t.bin").write_bytes(rows.tobytes())
    tensor = Tensor("t", rows.shape, GgmlType.F32, FileRows(DataFile(tmp_path / "t.bin"), 0, rows.shape[1] * 4))
    plan = make_plan({"general.architecture": string("gemma4")}, [Assignment(tensor, GgmlType.F32)])
    with pytest.raises(NonFiniteError, match=r"tensor t, .*the weight in row 2, column 7,"):
        write_gguf(plan, tmp_path / "out.gguf")
