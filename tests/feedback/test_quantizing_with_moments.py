"""Whole files quantized with second moments: the same layout, the same bytes whatever the threads, every expert."""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import EXAMPLE
from gguf import GGUFReader, dequantize

import gemma4_quant as gq
from gemma4_quant.calibration.collect_moments import NumberedChunks, collect_moments
from gemma4_quant.calibration.moments import read_moments
from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import MomentsError
from gemma4_quant.feedback.encoder import FeedbackEncoder
from gemma4_quant.ggml import FileType
from gemma4_quant.quantization import QuantizeOptions, prepare, quantize_each
from gemma4_quant.recipes.recipe import Recipe
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.text import chunk_text

TEXT = EXAMPLE / "calibration.txt"
EXPERTS = ("ffn_gate_up_exps", "ffn_down_exps")


def gathered(path: Path, output: Path, n_chunks: int) -> Path:
    with LoadedModel(path, n_gpu_layers=0) as model:
        chunks = NumberedChunks(chunk_text(model, TEXT, 256, n_chunks).tokens)
        return collect_moments(model, chunks, output, datasets=["text"]).path


@pytest.fixture(scope="module")
def moments(example_bf16, tmp_path_factory):
    return gathered(example_bf16, tmp_path_factory.mktemp("moments") / "example.gguf", 17)


def decoded(path):
    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}


def errors(path, original, file):
    """Return the layer-output error of every matrix that has moments, from gguf's decoders."""
    ours, exact = decoded(path), decoded(original)
    found = {}
    for name, moments in file.items():
        change = (ours[name].astype(np.float64) - exact[name]).reshape(moments.n_matrices, -1, moments.n_in)
        for matrix in range(moments.n_matrices):
            square = moments.block(matrix, 0)
            found[name, matrix] = float(((change[matrix] @ square) * change[matrix]).sum())
    return found


def test_every_linear_of_the_example_gains_in_a_file_of_the_same_layout(example_bf16, moments, tmp_path):
    recipe = Recipe(FileType.Q4_K_S)
    file = read_moments(moments)
    with_them = gq.quantize(example_bf16, tmp_path / "with.gguf", recipe=recipe, moments=moments)
    without = gq.quantize(example_bf16, tmp_path / "without.gguf", recipe=recipe, importance=None)
    ours, theirs = GGUFReader(with_them.path).tensors, GGUFReader(without.path).tensors
    assert [(t.name, t.tensor_type, t.n_bytes) for t in ours] == [(t.name, t.tensor_type, t.n_bytes) for t in theirs]
    before, after = (errors(result.path, example_bf16, file) for result in (without, with_them))
    assert all(after[key] < before[key] for key in before if before[key] > 0)
    assert {tensor.name for tensor in with_them.feedback.tensors} == {n for n, _ in before if before[n, 0] > 0}
    assert with_them.feedback.mean_ratio < 0.6
    assert all(tensor.held_out_ratio < 1 for tensor in with_them.feedback.tensors)
    assert without.feedback is None


def test_bytes_are_the_same_for_any_number_of_threads_and_beside_other_types(example_bf16, moments, tmp_path):
    kinds = [FileType.Q4_0, FileType.Q6_K]
    options = QuantizeOptions(moments=moments, effort=Effort.FAST, n_threads=2)
    together = quantize_each(example_bf16, tmp_path / "two-{ftype}.gguf", kinds, options)
    alone = gq.quantize(
        example_bf16, tmp_path / "one.gguf", FileType.Q4_0, moments=moments, effort=Effort.FAST, n_threads=1
    )
    assert alone.path.read_bytes() == together[0].path.read_bytes()


def test_experts_gain_too(moe_bf16, tmp_path):
    moments = gathered(moe_bf16, tmp_path / "moe.gguf", 9)
    file = read_moments(moments)
    recipe = Recipe(FileType.Q4_0)
    with_them = gq.quantize(moe_bf16, tmp_path / "with.gguf", recipe=recipe, moments=moments)
    importance_only = gq.quantize(
        moe_bf16, tmp_path / "plain.gguf", recipe=recipe, moments=moments_without_any_vector(moments, tmp_path)
    )
    before, after = (errors(result.path, moe_bf16, file) for result in (importance_only, with_them))
    ratios = {
        kind: np.mean([after[key] / before[key] for key in before if kind in key[0] and before[key] > 0])
        for kind in EXPERTS
    }
    # What enters the experts of a random model is nearly uncorrelated, which leaves feedback little to work with.
    assert ratios["ffn_gate_up_exps"] < 0.95
    assert ratios["ffn_down_exps"] < 1
    assert importance_only.feedback.mean_ratio == 1


def moments_without_any_vector(path, folder):
    """Return a copy of a file of moments whose counts are so small that feedback is not used."""
    copy = folder / "few.gguf"
    data = bytearray(path.read_bytes())
    for tensor in GGUFReader(path).tensors:
        if tensor.name.endswith((".counts", ".held_keys")):
            value = 1 if tensor.name.endswith(".counts") else -1
            data[tensor.data_offset : tensor.data_offset + tensor.n_bytes] = np.full(
                tensor.n_bytes // 8, value, "<i8"
            ).tobytes()
    copy.write_bytes(data)
    return copy


def test_an_interrupted_run_is_finished_with_the_bytes_of_one_that_was_not(
    example_bf16, moments, tmp_path, monkeypatch
):
    options = {"moments": moments, "effort": Effort.FAST, "n_threads": 1}
    whole = gq.quantize(example_bf16, tmp_path / "whole.gguf", FileType.Q4_0, **options)
    encode, calls = FeedbackEncoder.encode, []

    def stopping(self, *arguments):
        calls.append(self.tensor.name)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return encode(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FeedbackEncoder, "encode", stopping)
        with pytest.raises(KeyboardInterrupt):
            gq.quantize(example_bf16, tmp_path / "o.gguf", FileType.Q4_0, **options)
    assert not (tmp_path / "o.gguf").exists()
    resumed = gq.quantize(example_bf16, tmp_path / "o.gguf", FileType.Q4_0, **options)
    assert len(resumed.feedback.tensors) < len(whole.feedback.tensors)
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.gguf", "whole.gguf"]


def test_another_file_of_moments_makes_another_plan(example_bf16, moments, tmp_path):
    """The digest decides whether an interrupted run is taken up."""
    other = tmp_path / "other.gguf"
    other.write_bytes(moments.read_bytes())

    def digest(path):
        options = QuantizeOptions(moments=path)
        return prepare(example_bf16, tmp_path / "o.gguf", [FileType.Q4_0], options)[0].job.plan.digest

    assert digest(moments) == digest(moments)
    assert digest(moments) != digest(other)


def test_moments_of_another_model_are_refused_before_anything_is_written(moe_bf16, moments, tmp_path):
    with pytest.raises(MomentsError, match="another model"):
        gq.quantize(moe_bf16, tmp_path / "o.gguf", FileType.Q4_0, moments=moments)
    assert list(tmp_path.iterdir()) == []
