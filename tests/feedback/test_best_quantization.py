"""From a checkpoint to a file with error feedback in one run: the same as step by step, taken up after a kill."""

from dataclasses import replace

import pytest
from checkpoints import EXAMPLE

import gemma4_quant as gq
from gemma4_quant import best_quantization
from gemma4_quant.best_quantization import BestOptions, forecast_quantize_best, quantize_best
from gemma4_quant.calibration.collect import CalibrationOptions
from gemma4_quant.calibration.collect_moments import calibrate_moments
from gemma4_quant.calibration.moments import read_moments
from gemma4_quant.calibration.survey import expected_inputs, survey
from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import InputError, OutputError
from gemma4_quant.ggml import FileType
from gemma4_quant.quantization import QuantizeOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.source import open_model

CALIBRATION = CalibrationOptions(n_ctx=128, n_chunks=9, n_gpu_layers=0)
BEST = BestOptions([EXAMPLE / "calibration.txt"], CALIBRATION)
OPTIONS = QuantizeOptions(effort=Effort.FAST)


def test_it_writes_what_the_steps_give_one_by_one(example_bf16, tmp_path):
    result = quantize_best(EXAMPLE, tmp_path / "best.gguf", [FileType.Q4_0], OPTIONS, BEST)
    moments = tmp_path / "moments.gguf"
    calibrate_moments(example_bf16, BEST.texts, moments, options=CALIBRATION)
    steps = gq.quantize(EXAMPLE, tmp_path / "steps.gguf", FileType.Q4_0, moments=moments, effort=Effort.FAST)
    tensors = [open_model(path).tensors for path in (result.files[0].path, steps.path)]
    for ours, theirs in zip(*tensors, strict=True):
        assert (ours.name, ours.type) == (theirs.name, theirs.type)
        assert (ours.source.read_rows(0, ours.n_rows) == theirs.source.read_rows(0, theirs.n_rows)).all(), ours.name
    assert result.files[0].feedback.mean_ratio < 0.7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.gguf", "moments.gguf", "steps.gguf"]


def test_an_interrupted_run_does_not_gather_again(example_bf16, tmp_path, monkeypatch):
    def stopped(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(best_quantization, "quantize_each", stopped)
        with pytest.raises(KeyboardInterrupt):
            quantize_best(example_bf16, tmp_path / "best.gguf", [FileType.Q4_0], OPTIONS, BEST)
    work = tmp_path / "best.gguf.work"
    assert read_moments(work / "moments.gguf").provenance.chunk_count == 9
    kept = replace(BEST, keep_work=True)
    again = quantize_best(example_bf16, tmp_path / "best.gguf", [FileType.Q4_0], OPTIONS, kept)
    assert (again.moments, again.work) == (None, work)
    fewer = replace(BEST, calibration=replace(CALIBRATION, n_chunks=2))
    other = quantize_best(example_bf16, tmp_path / "best.gguf", [FileType.Q4_0], OPTIONS, fewer)
    assert other.moments.n_tokens == 2 * 128
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.gguf"]


def test_a_forecast_counts_the_work_files_and_writes_nothing(tmp_path):
    forecast = forecast_quantize_best(EXAMPLE, tmp_path / "best.gguf", [FileType.Q4_0], OPTIONS, BEST)
    moments = 4 * sum(n * (n + 1) // 2 for n in (256, 512, 1024))
    assert forecast.work_bytes > 12_000_000 + moments
    assert 4_000_000 < forecast.output_bytes < 6_000_000
    assert forecast.fits
    assert (forecast.n_passes, forecast.n_tokens) == (1, 9 * 128)
    assert min(forecast.calibrate_s, forecast.quantize_s) > 0
    tight = replace(BEST, memory_bytes=6_000_000)
    assert forecast_quantize_best(EXAMPLE, tmp_path / "best.gguf", [FileType.Q4_0], OPTIONS, tight).n_passes > 1
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_work_is_said_before_the_long_part(example_bf16, tmp_path):
    with pytest.raises(InputError, match="gathers its own"):
        quantize_best(example_bf16, tmp_path / "o.gguf", [FileType.Q4_0], replace(OPTIONS, moments=tmp_path), BEST)
    lost = replace(BEST, texts=[tmp_path / "nowhere.txt"])
    with pytest.raises(InputError, match="nowhere"):
        forecast_quantize_best(example_bf16, tmp_path / "o.gguf", [FileType.Q4_0], OPTIONS, lost)
    (tmp_path / "o.gguf.work").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="in the way"):
        quantize_best(example_bf16, tmp_path / "o.gguf", [FileType.Q4_0], OPTIONS, BEST)


@pytest.mark.parametrize("kind", ["example", "moe"])
def test_inputs_expected_by_names_are_those_of_the_graph(kind, request):
    """The forecast of a checkpoint, which cannot be run yet, must not be of another graph."""
    path = request.getfixturevalue({"example": "example_bf16", "moe": "moe_bf16"}[kind])
    with LoadedModel(path, n_gpu_layers=0) as model:
        found = survey(model)
    expected = expected_inputs(open_model(path))

    def facts(inputs):
        return {frozenset(each.names): (each.n_in, each.n_matrices, each.is_routed, each.n_used) for each in inputs}

    assert facts(expected) == facts(found)
