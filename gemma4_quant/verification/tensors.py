"""Every tensor of a file, dequantized tile by tile and held against its original."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.codecs import CODECS
from gemma4_quant.codecs.base import Effort
from gemma4_quant.converters.projector import is_limit
from gemma4_quant.errors import Gemma4QuantError
from gemma4_quant.ggml import GgmlType, row_bytes
from gemma4_quant.model import Model, Tensor
from gemma4_quant.progress import Progress
from gemma4_quant.threads import in_order
from gemma4_quant.verification.decoding import decoder_for
from gemma4_quant.verification.findings import Finding, Part
from gemma4_quant.verification.judgement import ComparedTile, Judgement, Pair, TensorResult
from gemma4_quant.verification.row_statistics import row_statistics
from gemma4_quant.writing.tiles import Tile, tiles_of


@dataclass(frozen=True)
class TensorComparison:
    """All tensors: the part of the report, and a line for each that both models have."""

    part: Part
    results: tuple[TensorResult, ...]


def compare_tensors(file: Model, original: Model, *, n_threads: int, progress: Progress) -> TensorComparison:
    """Compare the tensors of a GGUF file with those of the model it was made from; memory does not depend on sizes.

    original: a checkpoint as a converter lays it out, or another GGUF. Raises InputError when a file ends early,
    UnsupportedTypeError when a type has no decoder.
    """
    originals = {tensor.name: tensor for tensor in original.tensors}
    findings = list(_differences(file, originals))
    pairs = [
        Pair(tensor, originals[tensor.name])
        for tensor in file.tensors
        if tensor.name in originals and originals[tensor.name].shape == tensor.shape
    ]
    results = tuple(_judged(pairs, n_threads, progress))
    findings += [Finding(result.name, problem) for result in results for problem in result.problems]
    return TensorComparison(Part("tensors", len(file.tensors), "tensors", tuple(findings)), results)


def _judged(pairs: Sequence[Pair], n_threads: int, progress: Progress) -> Iterator[TensorResult]:
    """Yield the result of each pair, working on tiles of several at once."""

    def work(item: tuple[Pair, Tile]) -> ComparedTile:
        return _compare_tile(*item)

    progress.start("compare tensors", sum(pair.tensor.n_bytes for pair in pairs), "B")
    try:
        judgement: Judgement | None = None
        items = ((pair, tile) for pair in pairs for tile in tiles_of(pair.tensor))
        for (pair, tile), compared in in_order(work, items, n_threads):
            judgement = judgement or Judgement(pair)
            judgement.add(tile, compared)
            progress.advance((tile.stop - tile.start) * row_bytes(pair.tensor.type, pair.tensor.n_cols))
            if tile.stop == pair.tensor.n_rows:
                yield judgement.result()
                judgement = None
    finally:
        progress.finish()


def _differences(file: Model, originals: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Yield the tensors that only one model has, and those of another shape."""
    names = {tensor.name for tensor in file.tensors}
    for name in originals:
        if name not in names:
            yield Finding(name, "is missing")
    for tensor in file.tensors:
        original = originals.get(tensor.name)
        if original is None:
            yield Finding(tensor.name, "has no counterpart in the checkpoint")
        elif original.shape != tensor.shape:
            yield Finding(tensor.name, f"has the shape {_shape(tensor)}, not {_shape(original)}")


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, reversed(tensor.shape)))


def _compare_tile(pair: Pair, tile: Tile) -> ComparedTile:
    tensor, original, limit = pair.tensor, pair.original, pair.limit
    try:
        decoded = decoder_for(tensor.type)(tensor.source.read_rows(tile.start, tile.stop), tensor.n_cols)
        rows = decoder_for(original.type)(original.source.read_rows(tile.start, tile.stop), tensor.n_cols)
    except Gemma4QuantError as error:
        raise type(error)(f"tensor {tensor.name}, rows {tile.start} to {tile.stop - 1}: {error}") from error
    if is_limit(tensor.name):  # infinite where a layer clips nothing, which is no damage
        largest = np.finfo(np.float32).max
        decoded, rows = np.clip(decoded, -largest, largest), np.clip(rows, -largest, largest)
    statistics = row_statistics(decoded, rows, 0.0 if limit is None else limit.floor)
    is_exact = not statistics.error.any() if limit else bool(np.array_equal(decoded, _rounded(rows, tensor.type)))
    return ComparedTile(statistics, is_exact)


def _rounded(rows: Float32Rows, kind: GgmlType) -> Float32Rows:
    """Return rows in the precision of a float type; unchanged when it cannot hold them."""
    if kind is GgmlType.F32 or kind not in CODECS:
        return rows
    try:
        return CODECS[kind].decode(CODECS[kind].encode(rows, None, Effort.PLAIN), rows.shape[1])
    except Gemma4QuantError:
        return rows
