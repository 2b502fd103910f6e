"""Calibration against llama-imatrix's recorded results, and llama.cpp's quantizer fed with ours."""

import ctypes
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from checkpoints import EXAMPLE

from gemma4_quant.calibration import CalibrationOptions, calibrate, passes
from gemma4_quant.calibration.accumulate import Accumulator
from gemma4_quant.calibration.importance import read_importance
from gemma4_quant.errors import GgufError, NonFiniteError, OutputError, RunError, TextError
from gemma4_quant.runner.observer import Product
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = EXAMPLE / "calibration.txt"


@pytest.fixture(scope="module")
def calibrated(example_bf16, tmp_path_factory):
    """The whole calibration text, once."""
    output = tmp_path_factory.mktemp("calibration") / "imatrix.gguf"
    return calibrate(
        example_bf16, [TEXT], output=output, options=CalibrationOptions(process_output=False, strict_llama=True)
    )


def distance(ours, theirs):
    return np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)


def test_every_matrix_has_the_sums_and_counts_of_llama_imatrix(calibrated):
    ours, theirs = read_importance(calibrated.path), read_importance(GOLDEN / "imatrix.gguf")
    assert ours.names == theirs.names
    assert (ours.chunk_count, ours.chunk_size) == (theirs.chunk_count, theirs.chunk_size)
    for name, entry in theirs.entries.items():
        np.testing.assert_array_equal(ours.entries[name].counts, entry.counts)
        assert distance(ours.entries[name].sums, entry.sums).max() < 1e-3, name


def test_every_expert_has_the_sums_of_llama_imatrix(moe_bf16, tmp_path):
    result = calibrate(
        moe_bf16,
        [TEXT],
        output=tmp_path / "moe.gguf",
        options=CalibrationOptions(n_ctx=128, n_chunks=6, process_output=False, strict_llama=True),
    )
    ours, theirs = read_importance(result.path), read_importance(GOLDEN / "imatrix-moe.gguf")
    assert ours.names == theirs.names
    assert [(layer.layer, layer.n_experts, layer.unseen) for layer in result.experts] == [
        (i, 8, ()) for i in range(6)
    ]
    for name, entry in theirs.entries.items():
        # Rounding differs between processors; it may send a token on the edge to another expert.
        np.testing.assert_allclose(ours.entries[name].counts, entry.counts, atol=2)
        tolerance = 3e-2 if "_exps" in name else 1e-3
        assert distance(ours.entries[name].sums, entry.sums).max() < tolerance, name


def test_the_result_tells_what_was_done(calibrated):
    assert (calibrated.n_chunks, calibrated.n_ctx, calibrated.n_tensors) == (295, 512, 48)
    assert calibrated.n_tokens == 295 * 512
    assert calibrated.device.startswith("CPU")
    assert read_importance(calibrated.path).datasets == (str(TEXT),)


def test_llama_cpp_quantizes_with_ours(calibrated, example_bf16, tmp_path):
    """IQ2_XXS refuses to work without importance, so success shows that the data were used."""
    importance = read_importance(calibrated.path)
    rows = {name: importance.mean_square(name).reshape(-1) for name in sorted(importance.names)}
    entries = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))()
    for entry, (name, values) in zip(entries, rows.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    for with_importance in (True, False):
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_IQ2_XXS, 1
        params.imatrix = entries if with_importance else None
        output = tmp_path / f"{with_importance}.gguf"
        code = llama_cpp.llama_model_quantize(str(example_bf16).encode(), str(output).encode(), ctypes.byref(params))
        assert (code == 0) == with_importance


def test_texts_are_cut_each_on_its_own_and_add_up(example_bf16, tmp_path):
    text = TEXT.read_text(encoding="utf-8")
    parts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    parts[0].write_text(text[:2000], encoding="utf-8")
    parts[1].write_text(text[2000:4000], encoding="utf-8")
    results = [
        calibrate(
            example_bf16, texts, output=tmp_path / f"{i}.gguf", options=CalibrationOptions(n_ctx=64, n_threads=1)
        )
        for i, texts in enumerate([parts[:1], parts[1:], parts])
    ]
    first, second, both = (read_importance(result.path) for result in results)
    assert results[2].n_chunks == results[0].n_chunks + results[1].n_chunks
    for name in both.names:
        total = first.entries[name].sums + second.entries[name].sums
        assert distance(both.entries[name].sums, total).max() < 1e-2
    assert both.datasets == tuple(map(str, parts))


def test_the_output_matrix_is_watched_unless_told_otherwise(example_bf16, tmp_path):
    options = CalibrationOptions(n_ctx=64, n_chunks=2, n_threads=1)
    with_it = calibrate(example_bf16, [TEXT], output=tmp_path / "with.gguf", options=options)
    options = replace(options, process_output=False)
    without = calibrate(example_bf16, [TEXT], output=tmp_path / "without.gguf", options=options)
    added = read_importance(with_it.path).names - read_importance(without.path).names
    assert added == {"token_embd.weight"}


def test_a_long_chunk_may_take_several_batches(example_bf16, tmp_path):
    result = calibrate(
        example_bf16, [TEXT], output=tmp_path / "long.gguf", options=CalibrationOptions(n_ctx=3000, n_chunks=1)
    )
    importance = read_importance(result.path)
    assert importance.entries["blk.0.attn_q.weight"].counts[0] == 3000
    assert importance.entries["blk.5.ffn_down.weight"].counts[0] == 3000


def test_a_large_vocabulary_costs_no_token_at_the_end_of_a_chunk(example_bf16, tmp_path, monkeypatch):
    """Memory for logits bounds a batch to 256 tokens of Gemma's vocabulary; 264 must not leave 8 behind."""
    monkeypatch.setattr(passes, "LOGITS_BYTES", 256 * 4 * 2048)
    result = calibrate(
        example_bf16, [TEXT], output=tmp_path / "wide.gguf", options=CalibrationOptions(n_ctx=264, n_chunks=1)
    )
    assert read_importance(result.path).entries["blk.5.ffn_down.weight"].counts[0] == 264


def test_what_cannot_work_fails_before_the_run_and_leaves_no_file(example_bf16, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("In the beginning", encoding="utf-8")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    output = tmp_path / "imatrix.gguf"
    with pytest.raises(TextError, match=r"short\.txt has \d+ tokens, but a context of 512 needs at least 1024"):
        calibrate(example_bf16, [short], output=output)
    with pytest.raises(TextError, match="UTF-8"):
        calibrate(example_bf16, [binary], output=output)
    with pytest.raises(TextError, match="nowhere"):
        calibrate(example_bf16, [tmp_path / "nowhere.txt"], output=output)
    with pytest.raises(GgufError, match="not a GGUF"):
        calibrate(short, [TEXT], output=output)
    with pytest.raises(OutputError, match="does not exist"):
        calibrate(example_bf16, [TEXT], output=tmp_path / "no" / "imatrix.gguf")
    with pytest.raises(OutputError, match="would overwrite"):
        calibrate(example_bf16, [short], output=short)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["binary.txt", "short.txt"]


def test_what_an_observer_raises_reaches_the_caller(example_bf16):
    class Failing(Accumulator):
        def observe(self, product, inputs, experts):
            super().observe(product, inputs, experts)
            raise KeyboardInterrupt

    options = SessionOptions(n_threads=1)
    with (
        LoadedModel(example_bf16) as model,
        Session(model, options, Failing()) as session,
        pytest.raises(KeyboardInterrupt),
    ):
        session.decode(np.full((1, 40), 5, np.int32), 0, slice(39, None))


def test_activations_that_overflow_are_named():
    accumulator = Accumulator()
    product = Product("blk.0.attn_q.weight", 1, 4, 16, is_routed=False)
    assert accumulator.wants(product)
    inputs = np.ones((1, 1, 16, 4), np.float32)
    accumulator.observe(product, inputs, None)
    accumulator.end_batch()
    inputs[0, 0, 3, 2] = np.inf
    accumulator.observe(product, inputs, None)
    with pytest.raises(NonFiniteError, match=r"blk\.0\.attn_q"):
        accumulator.end_batch()


def test_an_expert_out_of_range_is_an_error():
    product = Product("blk.0.ffn_down_exps.weight", 2, 4, 1, is_routed=True)
    with pytest.raises(RunError, match="does not exist"):
        Accumulator().observe(product, np.ones((3, 1, 4), np.float32), np.array([[0], [2], [1]], np.int32))
