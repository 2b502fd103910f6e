"""Mixtures of experts of which some never fire: named, lent the mean of the others, quantized all the same."""

import logging
from pathlib import Path

import numpy as np
import pytest
from checkpoints import EXAMPLE
from gguf_editing import rewrite

import gemma4_quant as gq
from gemma4_quant.calibration import CalibrationOptions, calibrate
from gemma4_quant.calibration.coverage import ENOUGH_TOKENS, expert_coverage, is_covered
from gemma4_quant.calibration.importance import Entry, Importance, read_importance, write_importance
from gemma4_quant.calibration.legacy_dat import write_legacy
from gemma4_quant.cli.calibrate_text import coverage_lines
from gemma4_quant.codecs import CODECS
from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import ImportanceError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import FileType, GgmlType

TEXT = EXAMPLE / "calibration.txt"
ROUTERS = [f"blk.{layer}.ffn_gate_inp.weight" for layer in range(6)]
DEAD = 7


def with_dead_expert(rows):
    """Give experts 0 to 3 weights in opposite pairs, so that two of them beat 0, the score of expert 7."""
    scores = rows.view("<f4").copy()
    scores[1], scores[3], scores[DEAD] = -scores[0], -scores[2], 0
    return scores.view(np.uint8)


@pytest.fixture(scope="module")
def dead_expert(moe_bf16, tmp_path_factory) -> Path:
    """The random mixture of experts with one that is never routed to, in every layer."""
    output = tmp_path_factory.mktemp("dead") / "dead.gguf"
    return rewrite(moe_bf16, output, rows=dict.fromkeys(ROUTERS, with_dead_expert))


@pytest.fixture(scope="module")
def calibrated(dead_expert, tmp_path_factory):
    """Six short chunks of text run through it."""
    options = CalibrationOptions(n_ctx=64, n_chunks=6, n_threads=1)
    return calibrate(dead_expert, [TEXT], output=tmp_path_factory.mktemp("moe") / "moe.gguf", options=options)


def test_experts_without_a_token_are_named(calibrated):
    assert [layer.layer for layer in calibrated.experts] == list(range(6))
    for layer in calibrated.experts:
        assert (layer.n_experts, layer.unseen, layer.least) == (8, (DEAD,), 0)
        assert DEAD in layer.scarce
    text = "\n".join(coverage_lines(calibrated.experts, calibrated.min_expert_tokens))
    assert "layer 3: no token reached experts 7; they count as average ones" in text


def test_coverage_is_what_was_counted(calibrated):
    importance = read_importance(calibrated.path)
    for layer in calibrated.experts:
        counts = importance.entries[layer.weight].counts
        assert counts.sum() == 6 * 64 * 2  # two experts a token
        assert (layer.least, layer.median, layer.most) == (counts.min(), np.median(counts), counts.max())
        assert layer.scarce == tuple(np.flatnonzero(counts < ENOUGH_TOKENS))


def test_calibration_goes_on_until_each_expert_has_seen_enough(moe_bf16, tmp_path):
    options = CalibrationOptions(n_ctx=64, n_threads=1, min_expert_tokens=40)
    (tmp_path / "short.txt").write_text(TEXT.read_text(encoding="utf-8")[:600], encoding="utf-8")
    result = calibrate(moe_bf16, [tmp_path / "short.txt"], output=tmp_path / "more.gguf", options=options)
    assert result.n_extra_chunks > 0
    assert result.datasets[0] == str(tmp_path / "short.txt")
    assert result.datasets[1].startswith("built-in corpus")
    # It stops as soon as it may: a batch holds as many chunks as the text has, and reaches an expert once a token.
    n_batch_tokens = (result.n_chunks - result.n_extra_chunks) * 64
    assert 40 <= min(layer.least for layer in result.experts) < 40 + n_batch_tokens


def test_an_expert_that_never_fires_gets_the_mean_importance_of_the_others(calibrated):
    importance = read_importance(calibrated.path)
    name = "blk.2.ffn_gate_up_exps.weight"
    entry = importance.entries[name]
    assert importance.lent(name) == (DEAD,)
    means = entry.sums[:DEAD] / entry.counts[:DEAD, None]
    np.testing.assert_allclose(importance.mean_square(name)[DEAD], means.mean(axis=0), rtol=1e-6)


def calibrated_experts(calibrated) -> list[str]:
    """Return the weights of experts that have statistics."""
    return [name for name, entry in read_importance(calibrated.path).entries.items() if len(entry.counts) > 1]


@pytest.mark.parametrize("kind", [FileType.IQ2_XXS, FileType.Q4_K_M])
def test_it_is_quantized_with_a_warning(dead_expert, calibrated, tmp_path, caplog, kind):
    with caplog.at_level(logging.WARNING):
        result = gq.quantize(dead_expert, tmp_path / "small.gguf", kind, importance=calibrated.path, n_threads=1)
    assert "experts saw too little text and get the mean importance of their layer" in caplog.text
    assert "(1 of 8)" in caplog.text
    assert result.lent_importance == dict.fromkeys(calibrated_experts(calibrated), "1 of 8")
    name = "blk.2.ffn_gate_up_exps.weight"
    source = next(tensor for tensor in read_gguf(dead_expert).tensors if tensor.name == name)
    small = next(tensor for tensor in read_gguf(result.path).tensors if tensor.name == name)
    per_expert = source.n_rows // 8
    rows = source.source.read_rows(DEAD * per_expert, (DEAD + 1) * per_expert)
    floats = np.ascontiguousarray(CODECS[GgmlType.BF16].decode(rows, source.n_cols))
    weights = read_importance(calibrated.path).mean_square(name)[DEAD]
    expected = CODECS[small.type].encode(floats, weights, Effort.BALANCED)
    np.testing.assert_array_equal(small.source.read_rows(DEAD * per_expert, (DEAD + 1) * per_expert), expected)


def test_it_is_quantized_alike_with_a_file_of_the_older_format(dead_expert, calibrated, tmp_path):
    """That has no counts of experts; what was lent is written there. Importance is rounded once more."""
    write_legacy(tmp_path / "older.dat", read_importance(calibrated.path))
    files = [
        gq.quantize(dead_expert, tmp_path / f"{path.stem}-q.gguf", FileType.Q4_K_M, importance=path, n_threads=1).path
        for path in (calibrated.path, tmp_path / "older.dat")
    ]
    newer, older = ({tensor.name: tensor for tensor in read_gguf(path).tensors} for path in files)
    for name in calibrated_experts(calibrated):
        rows = [tensors[name].source.read_rows(0, tensors[name].n_rows) for tensors in (newer, older)]
        assert (rows[0] == rows[1]).mean() > 0.98, name


def test_types_that_need_importance_are_refused_where_most_of_it_would_be_lent(dead_expert, calibrated, tmp_path):
    importance = read_importance(calibrated.path)
    mostly_dead = dict(importance.entries)
    for name, entry in importance.entries.items():
        if len(entry.counts) > 1:
            seen = np.arange(8) < 3
            mostly_dead[name] = Entry(entry.sums * seen[:, None], entry.counts * seen)
    path = tmp_path / "mostly.gguf"
    write_importance(path, Importance(mostly_dead, (), 6, 64))
    with pytest.raises(ImportanceError, match=r"most experts of .*_exps.* saw no text"):
        gq.quantize(dead_expert, tmp_path / "small.gguf", FileType.IQ2_XXS, importance=path)
    gq.quantize(dead_expert, tmp_path / "small.gguf", FileType.Q4_K_M, importance=path, n_threads=1)


def test_an_expert_of_a_few_tokens_is_lent_importance_too():
    entry = Entry(np.array([[80.0, 160], [7, 700], [0, 0], [160, 80]]), np.array([80.0, 7, 0, 80]))
    importance = Importance({"blk.0.ffn_down_exps.weight": entry}, (), 1, 64)
    assert importance.lent("blk.0.ffn_down_exps.weight") == (1, 2)
    expected = [[1, 2], [1.5, 1.5], [1.5, 1.5], [2, 1]]
    np.testing.assert_array_equal(importance.mean_square("blk.0.ffn_down_exps.weight"), expected)


def test_models_without_experts_are_covered_and_the_scarcest_weight_of_a_layer_counts():
    assert expert_coverage({"blk.0.attn_q.weight": np.array([1.0])}) == ()
    assert is_covered({"blk.0.attn_q.weight": np.array([1.0])}, 256)
    counts = {
        "blk.10.ffn_down_exps.weight": np.array([300.0, 5, 400]),
        "blk.10.ffn_gate_up_exps.weight": np.array([300.0, 300, 400]),
        "blk.2.ffn_gate_up_exps.weight": np.array([300.0, 256, 400]),
    }
    second, tenth = expert_coverage(counts)
    assert (second.layer, second.scarce, second.least) == (2, (), 256)
    assert (tenth.layer, tenth.weight, tenth.scarce) == (10, "blk.10.ffn_down_exps.weight", (1,))
