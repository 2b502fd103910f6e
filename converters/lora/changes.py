"""What an adapter adds to the rows of a tensor, for each way in which PEFT stores the two factors."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Rows
from gemma4_quant.formats.safetensors_header import ITEM_BYTES, StoredTensor
from gemma4_quant.model import DataFile, FileRows


class Change(Protocol):
    """What is added to rows, computed when it is asked for; safe to use from several threads."""

    def add_to(self, rows: Float32Rows, start: int) -> None:
        """Add the change to `rows`, (n_rows, n_cols) float32, the first of which is row `start` of the tensor."""
        ...

    @property
    def identity(self) -> bytes:
        """Return bytes that change whenever the rows do; see RowSource."""
        ...

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the files of the factors."""
        ...


def float32_rows(data: ByteRows, dtype: str) -> Float32Rows:
    """Return rows of an F32, F16 or BF16 tensor, as they are stored, as (n_rows, n_cols) float32."""
    if dtype == "BF16":
        return (data.view("<u2").astype("<u4") << 16).view("<f4")
    return data.view({"F32": "<f4", "F16": "<f2"}[dtype]).astype("<f4")


@dataclass(frozen=True)
class _Factored:
    a: StoredTensor
    b: StoredTensor
    scale: float

    @property
    def identity(self) -> bytes:
        return self.a.source.identity + self.b.source.identity + repr(self.scale).encode()

    @property
    def files(self) -> tuple[DataFile, ...]:
        return (self.a.file,) if self.a.file is self.b.file else (self.a.file, self.b.file)


@dataclass(frozen=True)
class LinearChange(_Factored):
    """scale · B · A of a linear layer. a: (rank, n_in), b: (n_out, rank)."""

    def add_to(self, rows: Float32Rows, start: int) -> None:
        """Add the change to rows; see Change."""
        _add(_read(self.b, start, start + len(rows)), _read(self.a, 0, self.a.shape[0]), self.scale, rows)


@dataclass(frozen=True)
class EmbeddingChange(_Factored):
    """scale · (B · A)ᵀ of an embedding table. a: (rank, n_tokens), b: (width, rank)."""

    def add_to(self, rows: Float32Rows, start: int) -> None:
        """Add the change to the rows of tokens; see Change."""
        _add(_read_columns(self.a, start, start + len(rows)).T, _read(self.b, 0, self.b.shape[0]).T, self.scale, rows)


@dataclass(frozen=True)
class ExpertChange(_Factored):
    """scale · Bₑ · Aₑ of each of the experts stacked in one tensor of n_experts · n_rows rows.

    a: (n_experts · rank, n_in), b: (n_out, rank · n_experts) with the expert as its last index (peft,
    tuners/lora/layer.py, ParamWrapper). is_transposed: the tensor's rows are the factors' inputs, as PEFT before
    0.18 took every stack of experts.
    """

    n_experts: int
    is_transposed: bool

    def add_to(self, rows: Float32Rows, start: int) -> None:
        """Add the change to rows; see Change."""
        n_rows = self.a.shape[1] if self.is_transposed else self.b.shape[0]
        done = 0
        while done < len(rows):
            expert, first = divmod(start + done, n_rows)
            piece = rows[done : done + n_rows - first]
            self._add_to_expert(piece, expert, first)
            done += len(piece)

    def _add_to_expert(self, rows: Float32Rows, expert: int, first: int) -> None:
        rank, last = self.a.shape[0] // self.n_experts, first + len(rows)
        inputs = _read(self.a, expert * rank, (expert + 1) * rank)
        if self.is_transposed:
            outputs = _read(self.b, 0, self.b.shape[0])[:, expert :: self.n_experts]
            _add(inputs[:, first:last].T, outputs.T, self.scale, rows)
        else:
            _add(_read(self.b, first, last)[:, expert :: self.n_experts], inputs, self.scale, rows)


def _add(left: Float32Rows, right: Float32Rows, scale: float, rows: Float32Rows) -> None:
    from gemma4_quant.converters.lora.kernels import add_product

    add_product(np.ascontiguousarray(scaled(left, scale)), np.ascontiguousarray(right), rows)


def is_zero(stored: StoredTensor) -> bool:
    """Tell whether a factor holds nothing but zeros, as lora_B does before training."""
    return not any(_read(stored, row, row + 1).any() for row in range(stored.shape[0]))


def scaled(factor: Float32Rows, scale: float) -> Float32Rows:
    """Return a factor times `scale`, rounded to float32."""
    return factor * np.float32(scale)


def _read(stored: StoredTensor, start: int, stop: int) -> Float32Rows:
    return float32_rows(stored.source.read_rows(start, stop), stored.dtype)


def _read_columns(stored: StoredTensor, start: int, stop: int) -> Float32Rows:
    """Read columns start..stop of a matrix with few long rows."""
    item = ITEM_BYTES[stored.dtype]
    n_rows, n_cols = stored.shape
    rows = [
        FileRows(stored.file, stored.offset + (row * n_cols + start) * item, (stop - start) * item).read_rows(0, 1)
        for row in range(n_rows)
    ]
    return float32_rows(np.concatenate(rows), stored.dtype)
