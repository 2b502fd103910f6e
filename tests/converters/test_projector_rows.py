"""Encoder tensors in GGUF's order, against numpy on whole arrays, and softplus against PyTorch's recorded bits."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.converters.projector.rows import (
    activated,
    limit,
    planes_from_pixels,
    reorder_columns,
    squares_of_planes,
    swap_axes,
)
from gemma4_quant.converters.projector.softplus import softplus
from gemma4_quant.errors import NonFiniteError
from gemma4_quant.ggml import GgmlType, row_bytes
from gemma4_quant.model import ArrayRows, DataFile, FileRows, Tensor

TORCH_SOFTPLUS_OF_EVERY_BFLOAT16 = "5560e9b622a0bdb4cd1278bc699cd988fb3153698302115633172ccbf8b6fa81"
"""SHA-256 of torch.nn.functional.softplus (2.13, CPU) of all finite bfloat16 numbers by their bits, as float32."""

DTYPES = {GgmlType.F16: "<u2", GgmlType.F32: "<u4"}


def tensor(values: np.ndarray, kind: GgmlType) -> Tensor:  # type: ignore[type-arg]
    """A tensor in memory, whose rows are those of `values`."""
    rows = np.ascontiguousarray(values).reshape(-1, values.shape[-1]).view(np.uint8)
    return Tensor("v.test.weight", values.shape, kind, ArrayRows(lambda: rows))


def numbered(shape: tuple[int, ...], kind: GgmlType) -> np.ndarray:  # type: ignore[type-arg]
    return np.arange(np.prod(shape), dtype=DTYPES[kind]).reshape(shape)


def read(stored: Tensor, start: int, stop: int) -> np.ndarray:  # type: ignore[type-arg]
    rows = stored.source.read_rows(start, stop)
    assert rows.shape == (stop - start, row_bytes(stored.type, stored.n_cols))
    return rows.view(DTYPES[stored.type])


def spans(n_rows: int, data: st.DataObject) -> tuple[int, int]:
    start = data.draw(st.integers(0, n_rows - 1))
    return start, data.draw(st.integers(start + 1, n_rows))


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 6), st.sampled_from(list(DTYPES)), st.data())
def test_axes_are_swapped_whatever_rows_are_read(
    n_outer: int, n_inner: int, n_cols: int, kind: GgmlType, data: st.DataObject
) -> None:
    stored = numbered((n_outer, n_inner, n_cols), kind)
    swapped = swap_axes(tensor(stored, kind))
    assert swapped.shape == (n_inner, n_outer, n_cols)
    start, stop = spans(swapped.n_rows, data)
    whole = stored.transpose(1, 0, 2).reshape(-1, n_cols)
    assert np.array_equal(read(swapped, start, stop), whole[start:stop])


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(list(DTYPES)), st.data())
def test_patches_become_kernels_of_planes_whatever_rows_are_read(
    n_out: int, side: int, kind: GgmlType, data: st.DataObject
) -> None:
    stored = numbered((n_out, side * side * 3), kind)
    kernel = squares_of_planes(tensor(stored, kind), side)
    assert kernel.shape == (n_out, 3, side, side)
    start, stop = spans(kernel.n_rows, data)
    whole = stored.reshape(n_out, side, side, 3).transpose(0, 3, 1, 2).reshape(-1, side)
    assert np.array_equal(read(kernel, start, stop), whole[start:stop])


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(list(DTYPES)))
def test_columns_over_pixels_become_columns_over_planes(n_rows: int, side: int, kind: GgmlType) -> None:
    stored = numbered((n_rows, side * side * 3), kind)
    ours = reorder_columns(tensor(stored, kind), planes_from_pixels(side))
    by_planes = stored.reshape(n_rows, side, side, 3).transpose(0, 3, 1, 2).reshape(n_rows, -1)
    assert np.array_equal(read(ours, 0, n_rows), by_planes)


def test_rows_made_of_a_file_are_identified_by_it_and_by_what_is_done_to_them(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(48))
    rows = FileRows(DataFile(path), 0, 24)
    stored = Tensor("v.test.weight", (2, 12), GgmlType.F16, rows)
    made = [reorder_columns(stored, planes_from_pixels(2)), swap_axes(Tensor("t", (2, 1, 12), GgmlType.F16, rows))]
    assert [each.source.files for each in made] == [rows.files] * 2
    assert len({rows.identity, *(each.source.identity for each in made)}) == 3


def test_softplus_has_the_bits_of_pytorch_for_every_bfloat16() -> None:
    numbers = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    values = softplus(numbers[np.isfinite(numbers)])
    assert hashlib.sha256(values.tobytes()).hexdigest() == TORCH_SOFTPLUS_OF_EVERY_BFLOAT16


@given(st.lists(st.floats(-80, 100, width=32), min_size=1, max_size=40))
def test_softplus_is_within_a_unit_in_the_last_place(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    exact = np.where(values > 20, values, np.log1p(np.exp(np.minimum(values, 20).astype(np.float64))))
    assert np.all(np.abs(softplus(values) - exact) <= np.spacing(exact.astype(np.float32)) * 1.01)


def test_what_is_computed_from_float16_is_rounded_to_it() -> None:
    stored = np.linspace(-3, 3, 16, dtype="<f2")
    scale = activated(tensor(stored[None], GgmlType.F16))
    values = scale.source.read_rows(0, 1).view("<f4")[0]
    assert scale.type is GgmlType.F32
    assert np.array_equal(values, values.astype("<f2"))
    assert np.array_equal(values, softplus(stored.astype(np.float32)).astype("<f2"))


def test_limits_may_be_infinite_but_not_nan() -> None:
    infinite = limit(tensor(np.array([[np.inf]], "<f4"), GgmlType.F32))
    assert infinite.source.read_rows(0, 1).view("<f4") == np.inf
    with pytest.raises(NonFiniteError, match=r"v\.test\.weight holds NaN"):
        limit(tensor(np.array([[np.nan]], "<f4"), GgmlType.F32)).source.read_rows(0, 1)
