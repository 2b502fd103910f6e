"""KV caches of several types: coarser ones diverge more and take less."""

import pytest
from checkpoints import EXAMPLE

from gemma4_quant.benchmark import BenchOptions, bench
from gemma4_quant.errors import InputError
from gemma4_quant.ggml import GgmlType
from gemma4_quant.measuring.cache_matrix import CacheOptions
from gemma4_quant.measuring.scored_text import WindowOptions
from gemma4_quant.texts.framing import Framing

TEXT = EXAMPLE / "evaluation.txt"


@pytest.fixture(scope="module")
def matrix(example_bf16):
    options = BenchOptions(
        framing=Framing.RAW,
        speed=None,
        windows=WindowOptions(64, 1),
        cache=CacheOptions((GgmlType.F16, GgmlType.Q8_0, GgmlType.Q4_0), n_ctx=600, n_chunks=1),
    )
    (model,) = bench([example_bf16], texts=[TEXT], options=options).models
    return model.cache


def test_keys_and_values_are_tried_in_all_pairs(matrix):
    names = ("f16", "q8_0", "q4_0")
    assert [(cell.key_type, cell.value_type) for cell in matrix.cells] == [(k, v) for k in names for v in names]
    assert (matrix.n_ctx, matrix.n_chunks) == (600, 1)
    assert all(cell.score.n_positions == 299 for cell in matrix.cells)


def test_the_first_pair_does_not_diverge_from_itself(matrix):
    assert matrix.cells[0].score.divergence.kl.maximum.value < 1e-9


def test_coarser_types_diverge_more_and_take_less(matrix):
    by_pair = {(cell.key_type, cell.value_type): cell for cell in matrix.cells}
    for finer, coarser in (("f16", "q8_0"), ("q8_0", "q4_0")):
        fine, coarse = by_pair[finer, finer], by_pair[coarser, coarser]
        assert fine.score.divergence.kl.mean.value < coarse.score.divergence.kl.mean.value
        assert fine.cache_bytes > coarse.cache_bytes
    assert by_pair["f16", "f16"].cache_bytes / by_pair["q8_0", "q8_0"].cache_bytes == pytest.approx(32 / 17)
    half = (by_pair["f16", "f16"].cache_bytes + by_pair["q4_0", "q4_0"].cache_bytes) / 2
    assert by_pair["f16", "q4_0"].cache_bytes == pytest.approx(half, rel=0.05)


def test_caches_need_a_text_and_types(example_bf16):
    with pytest.raises(InputError, match="KV caches are compared on a text"):
        bench([example_bf16], texts=[], options=BenchOptions(cache=CacheOptions((GgmlType.F16,))))
    with pytest.raises(InputError, match="no type of KV cache"):
        bench([example_bf16], texts=[TEXT], options=BenchOptions(speed=None, cache=CacheOptions(())))
