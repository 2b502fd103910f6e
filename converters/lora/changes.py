"""What an adapter adds to the rows of a tensor, for each way in which PEFT stores the two factors."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Rows
from gemma4_quant.model import DataFile, FileRows
from gemma4_quant.safetensors_header import ITEM_BYTES, StoredTensor


class Change(Protocol):
    """Low-rank rows, computed when they are asked for; safe to use from several threads."""

    def rows(self, start: int, stop: int) -> Float32Rows:
        """Return rows start..stop of the change, (stop − start, n_cols) float32."""
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

    def rows(self, start: int, stop: int) -> Float32Rows:
        """Return rows of the change; see Change."""
        return scaled(_read(self.b, start, stop), self.scale) @ _read(self.a, 0, self.a.shape[0])


@dataclass(frozen=True)
class EmbeddingChange(_Factored):
    """scale · (B · A)ᵀ of an embedding table. a: (rank, n_tokens), b: (width, rank)."""

    def rows(self, start: int, stop: int) -> Float32Rows:
        """Return rows of the change, those of tokens start..stop; see Change."""
        return scaled(_read_columns(self.a, start, stop).T, self.scale) @ _read(self.b, 0, self.b.shape[0]).T


@dataclass(frozen=True)
class ExpertChange(_Factored):
    """scale · Bₑ · Aₑ of each of the experts stacked in one tensor of n_experts · n_rows rows.

    a: (n_experts · rank, n_in), b: (n_out, rank · n_experts) with the expert as its last index (peft,
    tuners/lora/layer.py, ParamWrapper). is_transposed: the tensor's rows are the factors' inputs, as PEFT before
    0.18 took every stack of experts.
    """

    n_experts: int
    is_transposed: bool

    def rows(self, start: int, stop: int) -> Float32Rows:
        """Return rows of the change; see Change."""
        n_rows = self.a.shape[1] if self.is_transposed else self.b.shape[0]
        parts = []
        while start < stop:
            expert, first = divmod(start, n_rows)
            last = min(n_rows, first + stop - start)
            parts.append(self._expert_rows(expert, first, last))
            start += last - first
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _expert_rows(self, expert: int, first: int, last: int) -> Float32Rows:
        rank = self.a.shape[0] // self.n_experts
        inputs = _read(self.a, expert * rank, (expert + 1) * rank)
        if self.is_transposed:
            outputs = _read(self.b, 0, self.b.shape[0])[:, expert :: self.n_experts]
            return scaled(inputs[:, first:last].T, self.scale) @ outputs.T
        return scaled(_read(self.b, first, last)[:, expert :: self.n_experts], self.scale) @ inputs


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
