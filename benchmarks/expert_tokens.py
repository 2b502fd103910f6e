"""How many activations an importance needs: what is lost when an expert saw only a few tokens.

Importance of each weight of the example is estimated from n of its activations, drawn at random from all chunks as a
router's choice would be, and the weight is quantized with it. The loss is the part of what full importance gains over
none, in error weighted with full importance, that the estimate misses.

    python benchmarks/expert_tokens.py MODEL.gguf TEXT
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from gemma4_quant.codecs import CODECS
from gemma4_quant.codecs.base import Effort
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import GgmlType
from gemma4_quant.runner.observer import Product
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.text import chunk_text

N_CHUNKS, N_CTX, N_DRAWS, N_ROWS = 40, 512, 4, 128
N_TOKENS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
KINDS = (GgmlType.Q3_K, GgmlType.Q4_K)


class Recorder:
    """Observer that keeps all inputs of the layers' weights whose rows are whole super-blocks."""

    def __init__(self) -> None:
        self.inputs: dict[str, list[np.ndarray]] = defaultdict(list)

    def wants(self, product: Product) -> bool:
        """Take weights of the layers; see Observer."""
        return product.weight.startswith("blk.") and product.n_in % 256 == 0

    def observe(self, product: Product, inputs: np.ndarray, _experts: np.ndarray | None) -> None:
        """Keep the inputs; see Observer."""
        self.inputs[product.weight].append(np.array(inputs[0, 0]))


def recorded(model: Path, text: Path) -> dict[str, np.ndarray]:
    """Return the inputs of each weight, (n_tokens, n_in) float32."""
    recorder = Recorder()
    options = SessionOptions(n_ctx=N_CTX, n_batch=N_CTX, n_outputs=N_CTX)
    with LoadedModel(model) as loaded, Session(loaded, options, recorder) as session:
        for chunk in chunk_text(loaded, text, N_CTX, N_CHUNKS).tokens:
            session.clear()
            session.decode(chunk[None], 0, slice(None))
    return {name: np.concatenate(parts) for name, parts in recorder.inputs.items()}


def weighted_error(rows: np.ndarray, kind: GgmlType, importance: np.ndarray | None, truth: np.ndarray) -> float:
    """Return the squared error of rows quantized with `importance`, weighted with `truth`."""
    codec = CODECS[kind]
    decoded = codec.decode(codec.encode(rows, importance, Effort.BALANCED), rows.shape[1])
    return float((((decoded - rows) ** 2).astype(np.float64) * truth).sum())


def losses(rows: np.ndarray, inputs: np.ndarray, kind: GgmlType, rng: np.random.Generator) -> list[float] | None:
    """Return the loss at each of N_TOKENS; None where importance gains less than 1 %."""
    squares = inputs.astype(np.float64) ** 2
    truth = squares.mean(axis=0)
    best = weighted_error(rows, kind, truth.astype(np.float32), truth)
    none = weighted_error(rows, kind, None, truth)
    if none - best < 0.01 * none:
        return None
    found = []
    for n_tokens in N_TOKENS:
        errors = []
        for _ in range(N_DRAWS):
            chosen = rng.choice(len(squares), n_tokens, replace=False)
            errors.append(weighted_error(rows, kind, squares[chosen].mean(axis=0).astype(np.float32), truth))
        found.append((float(np.mean(errors)) - best) / (none - best))
    return found


def main() -> None:
    """Print the median and worst loss over weights, a line for each number of tokens."""
    model, text = map(Path, sys.argv[1:3])
    weights = {tensor.name: tensor for tensor in read_gguf(model).tensors}
    rng = np.random.default_rng(0)
    found: dict[GgmlType, list[list[float]]] = defaultdict(list)
    for name, inputs in recorded(model, text).items():
        tensor = weights[name]
        raw = tensor.source.read_rows(0, min(N_ROWS, tensor.n_rows))
        rows = np.ascontiguousarray(CODECS[tensor.type].decode(raw, tensor.n_cols))
        for kind in KINDS:
            if (loss := losses(rows, inputs, kind, rng)) is not None:
                found[kind].append(loss)
    for kind, table in found.items():
        values = 100 * np.array(table)
        print(f"{kind.name}: {len(values)} weights; loss in % of the gain: tokens, median, nine tenths, worst")
        for i, n_tokens in enumerate(N_TOKENS):
            column = values[:, i]
            print(f"{n_tokens:6d} {np.median(column):8.2f} {np.quantile(column, 0.9):8.2f} {column.max():8.2f}")


if __name__ == "__main__":
    main()
