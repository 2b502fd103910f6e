"""Quantization-aware checkpoints: which tensors lie on a grid, and how to keep them there.

Such tensors are recognised by their weights, a few rows of each, never by names. Repacked on their grid they decode
to the weights that were trained; any other encoding, even of twice the bits, moves them off it.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.lanes import LANES
from gemma4_quant.codecs.qat_blocks import encode_on_grid, fit_type
from gemma4_quant.codecs.qat_grid import BlockState
from gemma4_quant.ggml import FileType, GgmlType, block_size, is_quantized
from gemma4_quant.model import Model, Tensor
from gemma4_quant.recipes.llama_types import default_type
from gemma4_quant.recipes.recipe import Choice, QatMode, Reason, Recipe

_PROBED_WEIGHTS = 1 << 18
"""Weights read of each tensor; 150 MB of a model of 300 tensors in bfloat16."""

_MOST_ROWS, _FEWEST_ROWS = 64, 16
_FEWEST_TELLING = 16
_LEAST_SHARE = 0.9
"""Of the telling blocks that must lie on the grid. On trained weights none does; see codecs/qat_grid.py."""

_DROPPED_BITS = {GgmlType.BF16: 16, GgmlType.F16: 13, GgmlType.F32: 0}


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

    @property
    def rows_at_once(self) -> int:
        """Return the rows that its search works on side by side."""
        return LANES

    def encode(self, rows: Float32Rows, importance: Float32Row | None, effort: Effort, matrix: int = 0) -> ByteRows:
        """Return rows in the type; importance and effort only serve blocks off the grid."""
        del matrix
        blocks = encode_on_grid(self.type, rows, importance, effort, self.dropped_bits)
        with self._lock:
            self.n_exact += blocks.n_exact
            self.n_near += blocks.n_near
            self.n_off += blocks.n_off
        return blocks.data

    def cost(self, effort: Effort) -> None:
        """Say that it takes what the codec of the type takes."""

    @property
    def identity(self) -> bytes:
        """Return what the bytes depend on, beside rows, importance and effort."""
        return f"grid {self.type.name} {self.dropped_bits}".encode()


@dataclass(frozen=True)
class GridPlan:
    """What becomes of the tensors that lie on a grid.

    choices: of all tensors, those on a grid changed. encoders: of the tensors that keep their grid. left: tensors on
    a grid that get another type, which moves them off it. n_probed, n_exact: blocks that were looked at of the
    tensors with encoders, and how many of them are held bit by bit.
    """

    choices: tuple[Choice, ...]
    encoders: Mapping[str, GridEncoder]
    left: tuple[str, ...] = ()
    n_probed: int = 0
    n_exact: int = 0


@dataclass(frozen=True)
class GridReport:
    """How tensors on a trained grid came out.

    n_tensors: that keep their grid. n_blocks: encoded in this run; of those n_exact decode to weights that round to
    the very same ones, n_near lie on a grid whose scale float16 cannot hold well enough for that, n_off on none.
    exact_share: n_exact / n_blocks, 0 without blocks. left: tensors on a grid that got another type.
    """

    n_tensors: int
    n_blocks: int
    n_exact: int
    n_near: int
    n_off: int
    exact_share: float
    left: tuple[str, ...]


def report_grids(plan: GridPlan) -> GridReport:
    """Sum up what the encoders of a plan have done."""
    encoders = plan.encoders.values()
    n_exact, n_near, n_off = (
        sum(getattr(each, name) for each in encoders) for name in ("n_exact", "n_near", "n_off")
    )
    n_blocks = n_exact + n_near + n_off
    share = n_exact / n_blocks if n_blocks else 0.0
    return GridReport(len(plan.encoders), n_blocks, n_exact, n_near, n_off, share, plan.left)


def plan_grids(model: Model, recipe: Recipe, choices: Sequence[Choice]) -> GridPlan:
    """Look for tensors on a grid among those that are to be quantized, and keep them there where the recipe says so.

    A type that was asked for by name or pattern stays. Reads a few rows of each tensor; raises InputError when they
    cannot be read.
    """
    looked_for, kept = _grid_types(recipe)
    names = [choice.name for choice in choices if choice.reason is not Reason.KEPT] if looked_for else []
    grids = recognise(model, names, looked_for)
    changed = tuple(
        _on_grid(choice, grids[choice.name], kept) if choice.name in grids else choice for choice in choices
    )
    encoders, left = {}, []
    for choice in changed:
        if (grid := grids.get(choice.name)) is None:
            continue
        if choice.type in grid.types:
            encoders[choice.name] = GridEncoder(choice.type, grid.dropped_bits)
        else:
            left.append(choice.name)
    n_probed, n_exact = (sum(getattr(grids[name], what) for name in encoders) for what in ("n_probed", "n_exact"))
    return GridPlan(changed, encoders, tuple(left), n_probed, n_exact)


_TWO_BIT_TYPES = {
    FileType.Q2_0: (GgmlType.Q2_0, GgmlType.TQ2_0, GgmlType.Q2_K),
    FileType.TQ2_0: (GgmlType.TQ2_0, GgmlType.Q2_0, GgmlType.Q2_K),
    FileType.Q2_K: (GgmlType.Q2_K, GgmlType.TQ2_0, GgmlType.Q2_0),
    FileType.Q2_K_S: (GgmlType.Q2_K, GgmlType.TQ2_0, GgmlType.Q2_0),
}

_ASKED_FOR = (Reason.NAMED, Reason.TENSOR_TYPE, Reason.OUTPUT_TENSOR_TYPE, Reason.TOKEN_EMBEDDING_TYPE)


def _grid_types(recipe: Recipe) -> tuple[tuple[GgmlType, ...], frozenset[GgmlType]]:
    """Return the types whose grids are looked for, and those among them that tensors are repacked as."""
    if recipe.qat is QatMode.OFF or not is_quantized(default_type(recipe.file_type)):
        return (), frozenset()
    two_bit = _TWO_BIT_TYPES.get(recipe.file_type, ())
    looked_for = (*two_bit, GgmlType.Q4_0)
    if recipe.qat is QatMode.ON or recipe.file_type is FileType.Q4_0:
        return looked_for, frozenset(looked_for)
    return looked_for, frozenset(two_bit)


def _on_grid(choice: Choice, grid: Grid, kept: frozenset[GgmlType]) -> Choice:
    kind = next((kind for kind in grid.types if kind in kept), None)
    if kind is None or choice.reason in _ASKED_FOR:
        return choice
    return replace(choice, type=kind, wanted=kind, reason=Reason.GRID)


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
