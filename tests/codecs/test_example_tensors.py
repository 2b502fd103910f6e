"""Our encoders on every tensor of a model that was really trained: never a larger weighted error than ggml's."""

from pathlib import Path

import libggml
import numpy as np
import pytest

from gemma4_quant.calibration.importance import read_importance
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.ggml import GgmlType, block_size
from gemma4_quant.gguf_reader import read_gguf

IMPORTANCE = Path(__file__).parents[1] / "golden" / "imatrix.gguf"
N_ROWS = 512  # of each tensor; only the two embedding tables have more


@pytest.mark.parametrize("kind", libggml.BLOCK_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("effort", [Effort.BALANCED, Effort.BEST], ids=lambda effort: effort.value)
def test_no_tensor_of_the_example_is_worse_than_with_ggml(kind: GgmlType, effort: Effort, example_bf16: Path) -> None:
    importance = read_importance(IMPORTANCE)
    codec = codec_for(kind)
    ratios = {}
    for tensor in read_gguf(example_bf16).tensors:
        if len(tensor.shape) < 2 or tensor.n_cols % block_size(kind).n_weights:
            continue
        stored = tensor.source.read_rows(0, min(N_ROWS, tensor.n_rows))
        rows = codec_for(tensor.type).decode(stored, tensor.n_cols)
        weights = importance.mean_square(tensor.name)[0] if tensor.name in importance.names else None
        ours = codec.decode(codec.encode(rows, weights, effort), tensor.n_cols)
        theirs = libggml.decode(kind, libggml.encode(kind, rows, weights), tensor.n_cols)
        w = np.ones(tensor.n_cols) if weights is None else weights.astype(np.float64)
        ratios[tensor.name] = float((w * (ours - rows) ** 2).sum() / (w * (theirs - rows) ** 2).sum())
    assert len(ratios) > 30
    assert max(ratios.values()) <= 1 + 1e-6, {name: ratio for name, ratio in ratios.items() if ratio > 1}
    assert np.exp(np.mean(np.log(list(ratios.values())))) < 0.99
