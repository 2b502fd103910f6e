"""Quantization-aware checkpoints: which tensors lie on a grid, and how to keep them there.

Such tensors are recognised by their weights, a few rows of each, never by names. Repacked on their grid they decode
to the weights that were trained; any other encoding, even of twice the bits, moves them off it.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.qat_blocks import encode_on_grid, fit_type
from gemma4_quant.codecs.qat_grid import BlockState
from gemma4_quant.ggml import FileType, GgmlType, block_size
from gemma4_quant.model import Model, Tensor

_PROBED_WEIGHTS = 1 << 18
"""Weights read of each tensor; 150 MB of a model of 300 tensors in bfloat16."""

_MOST_ROWS, _FEWEST_ROWS = 64, 16
_FEWEST_TELLING = 16
_LEAST_SHARE = 0.9
"""Of the telling blocks that must lie on the grid. On trained weights none does; see codecs/qat_grid.py."""

_DROPPED_BITS = {GgmlType.BF16: 16, GgmlType.F16: 13, GgmlType.F32: 0}


class QatMode(StrEnum):
    """What to do with tensors on a grid.

    AUTO: repack them when the file type is a grid's own (q4_0, or a two-bit type), else only warn. ON: repack them
    whatever the file type. OFF: do not look.
    """

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True)
class Grid:
    """A grid that a tensor lies on.

    types: those that can hold it, best known first. dropped_bits: see fit_grid. n_probed, n_exact: blocks of the
    first of the types that were looked at, and those of them that it holds bit by bit.
    """

    types: tuple[GgmlType, ...]
    dropped_bits: int
    n_probed: int
    n_exact: int


@dataclass
class GridEncoder:
    """Encodes the rows of one tensor on its grid, and counts how that went; see RowEncoder."""

    type: GgmlType
    dropped_bits: int
    n_exact: int = 0
    n_near: int = 0
    n_off: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def encode(self, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
        """Return rows in the type; importance and effort only serve blocks off the grid."""
        blocks = encode_on_grid(self.type, rows, importance, effort, self.dropped_bits)
        with self._lock:
            self.n_exact += blocks.n_exact
            self.n_near += blocks.n_near
            self.n_off += blocks.n_off
        return blocks.data

    @property
    def identity(self) -> bytes:
        """Return what the bytes depend on, beside rows, importance and effort."""
        return f"grid {self.type.name} {self.dropped_bits}".encode()


def two_bit_file_type(file_type: FileType) -> bool:
    """Tell whether a file type asks for about two bits, so that two-bit grids are worth looking for."""
    return file_type in (FileType.Q2_0, FileType.TQ2_0, FileType.TQ1_0, FileType.Q2_K, FileType.Q2_K_S)


def recognise(model: Model, names: Iterable[str], kinds: Iterable[GgmlType]) -> dict[str, Grid]:
    """Find the tensors among `names` that lie on a grid of one of the types `kinds`; reads a few rows of each.

    Only tensors of floats are looked at. Raises InputError when a file cannot be read.
    """
    wanted, kinds = set(names), tuple(kinds)
    found = {t.name: recognise_tensor(t, kinds) for t in model.tensors if t.name in wanted}
    return {name: grid for name, grid in found.items() if grid is not None}


def recognise_tensor(tensor: Tensor, kinds: tuple[GgmlType, ...]) -> Grid | None:
    """Return the grid that a tensor lies on, for the types of `kinds` that can hold it, in their order.

    None when its weights are ordinary, or too few to tell.
    """
    if tensor.type not in _DROPPED_BITS:
        return None
    rows = _probe(tensor)
    if not np.isfinite(rows).all():
        return None
    dropped_bits = _dropped_bits(rows, tensor.type)
    counts: dict[GgmlType, tuple[int, int]] = {}
    for kind in kinds:
        if tensor.n_cols % block_size(kind).n_weights == 0 and (count := _count(kind, rows, dropped_bits)):
            counts[kind] = count
    if not counts:
        return None
    n_probed, n_exact = next(iter(counts.values()))
    return Grid(tuple(counts), dropped_bits, n_probed, n_exact)


def _probe(tensor: Tensor) -> Float32Rows:
    """Read rows spread evenly over the tensor and all its matrices, as float32."""
    n_rows = min(tensor.n_rows, max(_FEWEST_ROWS, min(_MOST_ROWS, _PROBED_WEIGHTS // tensor.n_cols)))
    picked = [i * tensor.n_rows // n_rows for i in range(n_rows)]
    stored = np.concatenate([tensor.source.read_rows(row, row + 1) for row in picked])
    return codec_for(tensor.type).decode(stored, tensor.n_cols)


def _dropped_bits(rows: Float32Rows, kind: GgmlType) -> int:
    """Return how many low bits the weights never had: those of bfloat16 may be stored in wider floats."""
    used = int(np.bitwise_or.reduce(rows.view(np.uint32), axis=None))
    return next(
        bits for bits in (16, 13, 0) if (bits >= _DROPPED_BITS[kind] and not used & ((1 << bits) - 1)) or not bits
    )


def _count(kind: GgmlType, rows: Float32Rows, dropped_bits: int) -> tuple[int, int] | None:
    """Return the blocks of the rows and those that `kind` holds exactly; None when the rows are not on its grid."""
    fit = fit_type(kind, rows, dropped_bits)
    on_grid = (fit.states != BlockState.OFF) & _codes_differ(fit.codes, fit.states.shape)
    telling = int(fit.telling.sum())
    if telling < _FEWEST_TELLING or int(on_grid[fit.telling].sum()) < _LEAST_SHARE * telling:
        return None
    return fit.states.size, int((fit.states == BlockState.EXACT).sum())


def _codes_differ(codes: np.ndarray[tuple[int, ...], np.dtype[np.int8]], shape: tuple[int, ...]) -> Float32Rows:
    """Tell of each block whether it has two different codes: weights that hardly differ share one on any grid."""
    blocks = codes.reshape(*shape, -1)
    differ: Float32Rows = blocks.min(axis=-1) != blocks.max(axis=-1)
    return differ
