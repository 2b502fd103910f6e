"""Feed-forward widths made whole super-blocks by zeros: 704 → 768, 2112 → 2304.

A unit of a feed-forward layer whose gate and up rows are zero puts out gelu(0) · 0 = 0, which the zero column of the
down matrix takes to nothing: the padded model computes what the model did. K and IQ blocks of 256 weights then fit
rows that they would not fit otherwise.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Rows
from gemma4_quant.errors import GgufError, ShapeError
from gemma4_quant.ggml import is_quantized, row_bytes
from gemma4_quant.metadata import Metadata, Value, get_int, get_string, numbers
from gemma4_quant.model import DataFile, Model, RowSource, Tensor

_MULTIPLE = 256  # QK_K in ggml-common.h, weights in a K or IQ block


class FeedForward(StrEnum):
    """The two kinds of feed-forward layers, by the key of their width below the architecture's."""

    SHARED = "feed_forward_length"
    EXPERTS = "expert_feed_forward_length"


# Tensors whose rows are units, how many groups of units a matrix has, and the one whose columns are units.
_BY_ROWS = {
    FeedForward.SHARED: {"ffn_gate.weight": 1, "ffn_up.weight": 1},
    FeedForward.EXPERTS: {"ffn_gate_exps.weight": 1, "ffn_up_exps.weight": 1, "ffn_gate_up_exps.weight": 2},
}
_BY_COLUMNS = {FeedForward.SHARED: "ffn_down.weight", FeedForward.EXPERTS: "ffn_down_exps.weight"}


@dataclass(frozen=True)
class PaddedRows:
    """Rows with zeros after each of them and after each group of them.

    source: rows of source_row_bytes, in groups of source_rows. row_bytes, rows: their sizes with zeros.
    """

    source: RowSource
    source_row_bytes: int
    source_rows: int
    row_bytes: int
    rows: int

    def read_rows(self, start: int, stop: int) -> ByteRows:
        """Return rows start..stop, (stop − start, row_bytes) uint8; see RowSource."""
        out = np.zeros((stop - start, self.row_bytes), np.uint8)
        for group in range(start // self.rows, -(-stop // self.rows)):
            first = max(start, group * self.rows)
            last = min(stop, group * self.rows + self.source_rows)
            if first < last:
                skipped = group * (self.rows - self.source_rows)
                stored = self.source.read_rows(first - skipped, last - skipped)
                out[first - start : last - start, : self.source_row_bytes] = stored
        return out

    @property
    def identity(self) -> bytes:
        """Return the source's identity and the sizes; see RowSource."""
        sizes = f"padded {self.source_row_bytes} {self.source_rows} {self.row_bytes} {self.rows} "
        return sizes.encode() + self.source.identity

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the source's files; see RowSource."""
        return self.source.files


def can_be_padded(model: Model, kind: FeedForward) -> bool:
    """Tell whether the layers of `kind` are unquantized: zeros cannot be added to blocks."""
    parts = {_BY_COLUMNS[kind], *_BY_ROWS[kind]}
    return not any(is_quantized(tensor.type) for tensor in model.tensors if _part(tensor.name) in parts)


def padded(model: Model, kind: FeedForward) -> Model:
    """Return the model with the widths of `kind` rounded up to whole super-blocks; the same model if they are.

    Raises GgufError when the tensors of a layer disagree about its width, ShapeError when one is quantized already.
    """
    tensors = [_padded_tensor(tensor, kind) for tensor in model.tensors]
    if all(new is old for new, old in zip(tensors, model.tensors, strict=True)):
        return model
    _check_widths(model.tensors, kind)
    return replace(model, metadata=_padded_metadata(model.metadata, kind), tensors=tensors)


def padded_importance(model: Model, importance: Mapping[str, Float32Rows]) -> dict[str, Float32Rows]:
    """Return importance for the tensors of a padded model: columns of zeros weigh nothing."""
    widths = {tensor.name: tensor.n_cols for tensor in model.tensors}
    return {
        name: np.pad(rows, ((0, 0), (0, widths[name] - rows.shape[1]))) if rows.shape[1] < widths[name] else rows
        for name, rows in importance.items()
    }


def padded_widths(before: Model, after: Model) -> dict[str, str]:
    """Return which metadata keys of widths changed, as `704 → 768`."""
    prefix = get_string(before.metadata, "general.architecture")
    changes = {}
    for kind in FeedForward:
        old, new = (model.metadata.get(f"{prefix}.{kind.value}") for model in (before, after))
        if old is not None and new is not None and old != new:
            changes[kind.value] = f"{_shown(old)} → {_shown(new)}"
    return changes


def _shown(value: Value) -> str:
    widths = value.decode()
    return ", ".join(map(str, sorted(set(widths)))) if isinstance(widths, list) else str(widths)


def _round_up(width: int) -> int:
    return -(-width // _MULTIPLE) * _MULTIPLE


def _part(name: str) -> str:
    """Return a name without its layer: `blk.3.ffn_up.weight` → `ffn_up.weight`."""
    return name.split(".", 2)[-1] if name.startswith("blk.") else name


def _padded_tensor(tensor: Tensor, kind: FeedForward) -> Tensor:
    part, shape = _part(tensor.name), tensor.shape
    n_rows, n_cols = tensor.n_rows // tensor.n_matrices, tensor.n_cols
    if part == _BY_COLUMNS[kind]:
        groups, units, wide_rows, wide_cols = 1, n_cols, n_rows, _round_up(n_cols)
    elif part in _BY_ROWS[kind]:
        groups = _BY_ROWS[kind][part]
        if n_rows % groups:
            raise GgufError(f"{tensor.name} has {n_rows} rows, not as many for gate as for up; convert again")
        units, wide_rows, wide_cols = n_rows // groups, groups * _round_up(n_rows // groups), n_cols
    else:
        return tensor
    if units == _round_up(units):
        return tensor
    if is_quantized(tensor.type):
        raise ShapeError(f"{tensor.name} is {tensor.type.name}; only unquantized feed-forward layers can be padded")
    rows = PaddedRows(
        tensor.source,
        row_bytes(tensor.type, n_cols),
        n_rows // groups,
        row_bytes(tensor.type, wide_cols),
        wide_rows // groups,
    )
    return replace(tensor, shape=(*shape[:-2], wide_rows, wide_cols), source=rows)


def _check_widths(tensors: Iterable[Tensor], kind: FeedForward) -> None:
    widths: dict[str, set[int]] = {}
    for tensor in tensors:
        part = _part(tensor.name)
        layer = tensor.name.removesuffix(part)
        if part == _BY_COLUMNS[kind]:
            widths.setdefault(layer, set()).add(tensor.n_cols)
        elif part in _BY_ROWS[kind]:
            widths.setdefault(layer, set()).add(tensor.n_rows // tensor.n_matrices // _BY_ROWS[kind][part])
    if odd := [layer for layer, found in widths.items() if len(found) > 1]:
        raise GgufError(
            f"the tensors of {odd[0]}ffn_* disagree about the width of the layer; convert the model again"
        )


def _padded_metadata(metadata: Metadata, kind: FeedForward) -> dict[str, Value]:
    key = f"{get_string(metadata, 'general.architecture')}.{kind.value}"
    value = metadata.get(key)
    if value is None:
        raise GgufError(f"the metadata has no {key}, so the layers cannot be padded")
    widths = [get_int(metadata, key)] if value.item is None else [int(width) for width in value.array()]
    try:
        return {**metadata, key: _numbers_like(value, [_round_up(width) for width in widths])}
    except OverflowError as error:
        raise GgufError(f"{key} is {max(widths)}, which cannot be padded; convert the model again") from error


def _numbers_like(value: Value, values: list[int]) -> Value:
    """Return integers in the type of `value`: an array of them, or the first as a number."""
    if value.item is not None:
        return numbers(value.item, values)
    return Value(value.type, numbers(value.type, values[:1]).data)
