"""Statistics of importance files against what `llama-imatrix --show-statistics` prints of the same files."""

import json
from pathlib import Path

import numpy as np
import pytest

from gemma4_quant.calibration.importance import Entry, Importance, read_importance
from gemma4_quant.calibration.statistics import kind_of, layer_statistics, tensor_statistics

GOLDEN = Path(__file__).parents[1] / "golden"
PRINTED = json.loads((GOLDEN / "imatrix-statistics.json").read_text(encoding="utf-8"))


def importance_of(**columns) -> Importance:
    entries = {
        name: Entry(np.array(sums, np.float64), np.array(counts, np.float64))
        for name, (sums, counts) in columns.items()
    }
    return Importance(entries, (), 1, 512)


@pytest.mark.parametrize("name", PRINTED)
def test_each_tensor_has_the_columns_of_llama_imatrix(name):
    importance = read_importance(GOLDEN / name)
    ours = tensor_statistics(importance)
    theirs = {(row[0], row[1]): row[2:] for row in PRINTED[name]["tensors"]}
    assert len(ours) == len(theirs)
    for each in ours:
        total, least, most, mean, deviation, active, n_columns, entropy, share, outliers, cosine = map(
            float, theirs[str(each.layer), kind_of(each.name)]
        )
        # Printed with two or four digits, and summed in float32 by llama.cpp.
        assert each.total == pytest.approx(total, rel=1e-4, abs=0.01)
        assert each.least == pytest.approx(least, rel=1e-4, abs=1e-4)
        assert each.most == pytest.approx(most, rel=1e-4, abs=1e-4)
        assert each.mean == pytest.approx(mean, rel=1e-4, abs=0.006)
        assert each.deviation == pytest.approx(deviation, rel=1e-3, abs=0.006)
        assert 100 * each.active_share == pytest.approx(active, abs=0.006)
        assert each.n_columns == n_columns
        assert each.entropy == pytest.approx(entropy, abs=2e-3)
        assert 100 * each.entropy_share == pytest.approx(share, abs=0.02)
        assert 100 * each.outlier_share == pytest.approx(outliers, abs=0.006)
        before = each.name.replace(f"blk.{each.layer}.", f"blk.{each.layer - 1}.")
        if before in importance.names and each.cosine is None:
            # Layers of other width: llama-imatrix reads past the end of the shorter one.
            assert importance.entries[before].sums.size != importance.entries[each.name].sums.size
        else:
            assert (each.cosine or 0.0) == pytest.approx(cosine, abs=1e-3)


def test_layers_average_their_weights():
    """The layers of the mixture of experts all have one width, so that llama-imatrix's cosines are real ones."""
    ours = layer_statistics(tensor_statistics(read_importance(GOLDEN / "imatrix-moe.gguf")))
    compared = 0
    for each, row in zip(ours, PRINTED["imatrix-moe.gguf"]["layers"], strict=True):
        layer, total, outliers, cosine = map(float, row)
        assert each.layer == layer
        assert each.total == pytest.approx(total, rel=1e-4, abs=0.01)
        assert 100 * each.outlier_share == pytest.approx(outliers, abs=2e-3)
        if np.isfinite(cosine) and abs(cosine) <= 1:
            compared += each.cosine == pytest.approx(cosine, abs=1e-3)
    assert compared > 0


def test_tensors_come_by_kind_and_the_greatest_total_first():
    names = [each.name for each in tensor_statistics(read_importance(GOLDEN / "imatrix.gguf"))]
    theirs = [f"blk.{layer}.{kind}.weight" for layer, kind, *_ in PRINTED["imatrix.gguf"]["tensors"]]
    assert names == theirs


def test_matrices_that_saw_nothing_take_no_part():
    importance = importance_of(
        **{"blk.0.ffn_up_exps.weight": ([[2, 6], [0, 0]], [2, 0]), "token_embd.weight": ([[0, 0]], [0])}
    )
    (only,) = tensor_statistics(importance)
    assert (only.name, only.total, only.n_columns, only.mean) == ("blk.0.ffn_up_exps.weight", 4.0, 2, 2.0)
    assert only.entropy == pytest.approx(-(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75)))


def test_columns_that_are_always_zero_are_no_division_by_zero():
    (only,) = tensor_statistics(importance_of(**{"output.weight": ([[0, 0, 0]], [4])}))
    assert (only.total, only.entropy, only.active_share, only.layer, only.cosine) == (0, 0, 0, None, None)
