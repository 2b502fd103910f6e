"""Rows of encoder tensors that GGUF stores in another order, or as values computed from the stored ones."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma4_quant.arrays import ByteRows, Float32Rows
from gemma4_quant.converters.projector.softplus import softplus
from gemma4_quant.errors import NonFiniteError
from gemma4_quant.ggml import GgmlType, row_bytes
from gemma4_quant.model import ArrayRows, DataFile, RowSource, Tensor

Permutation = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class ReorderedColumns:
    """Rows whose values stand in another order, each cut into `n_parts` rows.

    rows: as stored, of values `item_bytes` wide. columns: for each value of ours, where it is stored.
    """

    rows: RowSource
    columns: Permutation
    item_bytes: int
    n_parts: int = 1

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop; see RowSource."""
        first = start // self.n_parts
        stored = self.rows.read_rows(first, -(-stop // self.n_parts))
        ours = stored.view(f"<u{self.item_bytes}")[:, self.columns]
        parts = ours.reshape(len(ours) * self.n_parts, -1)
        skipped = first * self.n_parts
        return np.ascontiguousarray(parts[start - skipped : stop - skipped]).view(np.uint8)

    @property
    def identity(self) -> bytes:
        """Return the identity of the stored rows; see RowSource."""
        return self.rows.identity + b" reordered columns"

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the files of the stored rows; see RowSource."""
        return self.rows.files


@dataclass(frozen=True)
class SwappedAxes:
    """Rows stored as [n_outer][n_inner], read as [n_inner][n_outer]."""

    rows: RowSource
    n_outer: int
    n_inner: int

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop; see RowSource."""
        parts = []
        while start < stop:
            inner, outer = divmod(start, self.n_outer)
            n_rows = min(stop - start, self.n_outer - outer)
            stored = self.rows.read_rows(outer * self.n_inner, (outer + n_rows) * self.n_inner)
            parts.append(stored[inner :: self.n_inner])
            start += n_rows
        return np.concatenate(parts)

    @property
    def identity(self) -> bytes:
        """Return the identity of the stored rows; see RowSource."""
        return self.rows.identity + b" swapped axes"

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the files of the stored rows; see RowSource."""
        return self.rows.files


def planes_from_pixels(side: int) -> Permutation:
    """Return where each value of a square in planes (RR…GG…BB…) stands in one of pixels (RGBRGB…); (3·side²,)."""
    return np.arange(3 * side * side).reshape(side, side, 3).transpose(2, 0, 1).reshape(-1)


def reorder_columns(stored: Tensor, columns: Permutation) -> Tensor:
    """Return `stored` with the values of each row in the order of `columns`."""
    rows = ReorderedColumns(stored.source, columns, row_bytes(stored.type, 1))
    return replace(stored, source=rows)


def squares_of_planes(stored: Tensor, side: int) -> Tensor:
    """Return a convolution kernel (n_out, 3, side, side) for a matrix (n_out, 3·side²) over pixels RGBRGB…."""
    rows = ReorderedColumns(stored.source, planes_from_pixels(side), row_bytes(stored.type, 1), 3 * side)
    return replace(stored, shape=(stored.shape[0], 3, side, side), source=rows)


def swap_axes(stored: Tensor) -> Tensor:
    """Return (b, a, n) for a tensor stored as (a, b, n)."""
    n_outer, n_inner, n_cols = stored.shape
    return replace(stored, shape=(n_inner, n_outer, n_cols), source=SwappedAxes(stored.source, n_outer, n_inner))


def without_middle_axis(stored: Tensor) -> Tensor:
    """Return (a, n) for a tensor stored as (a, 1, n)."""
    return replace(stored, shape=(stored.shape[0], stored.shape[2]))


def limit(stored: Tensor) -> Tensor:
    """Return the bound of a clipped layer as float32; infinite where the layer clips nothing."""
    return _computed(stored, lambda values: values)


def activated(stored: Tensor) -> Tensor:
    """Return log(1 + eˣ) as float32, which transformers computes whenever the model runs.

    llama.cpp's converter computes in float16 what is stored so, and in float32 all else.
    """
    if stored.type is GgmlType.F16:
        return _computed(stored, lambda values: softplus(values).astype("<f2"))
    return _computed(stored, softplus)


def _computed(stored: Tensor, change: Callable[[Float32Rows], npt.NDArray[np.floating[Any]]]) -> Tensor:
    def load() -> ByteRows:
        from gemma4_quant.codecs import codec_for

        data = stored.source.read_rows(0, stored.n_rows)
        values = codec_for(stored.type).decode(data, stored.n_cols)
        if np.isnan(values).any():
            raise NonFiniteError(f"tensor {stored.name} holds NaN; the checkpoint is damaged")
        return np.ascontiguousarray(change(values), "<f4").view(np.uint8)

    return replace(stored, type=GgmlType.F32, source=ArrayRows(load))
