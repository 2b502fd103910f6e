"""The bench as a whole: plausible numbers, a table that fits, JSON, and clear refusals."""

import ctypes
import dataclasses
import json
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from checkpoints import EXAMPLE

from gemma4_quant.benchmark import bench
from gemma4_quant.errors import GgufError, InputError
from gemma4_quant.report.table import bench_table

TEXT = EXAMPLE / "evaluation.txt"
RECORDED = json.loads((Path(__file__).parent / "golden" / "quality.json").read_text())


@pytest.fixture(scope="module")
def q4_k_m(example_bf16, tmp_path_factory):
    """The example quantized by llama.cpp, as the recorded one was."""
    path = tmp_path_factory.mktemp("q4") / "example-Q4_K_M.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, 1
    assert not llama_cpp.llama_model_quantize(str(example_bf16).encode(), str(path).encode(), ctypes.byref(params))
    return path


@pytest.fixture(scope="module")
def result(q4_k_m, example_bf16, example_f32):
    return bench(
        [example_bf16, q4_k_m, example_f32],
        reference=example_f32,
        text=TEXT,
        n_prompt=64,
        n_generate=16,
        repetitions=3,
    )


def test_perplexities_are_those_of_llama_perplexity(result):
    recorded = [RECORDED["bf16_ppl"], RECORDED["files"]["Q4_K_M"]["ppl"], RECORDED["reference_ppl"]]
    for model, (value, error) in zip(result.models, recorded, strict=True):
        assert model.score.perplexity.value == pytest.approx(value, rel=5e-4)
        assert model.score.perplexity.error == pytest.approx(error, rel=5e-3)
        assert (model.score.n_chunks, model.score.n_positions) == (118, 118 * 255)


def test_divergence_of_a_quantized_file_is_that_of_llama_perplexity(result):
    divergence, recorded = result.models[1].score.divergence, RECORDED["files"]["Q4_K_M"]
    assert divergence.mean.value == pytest.approx(recorded["mean_kld"][0], rel=0.02)
    assert divergence.mean.error == pytest.approx(recorded["mean_kld"][1], rel=0.1)
    assert divergence.percentile_99 == pytest.approx(recorded["p99_kld"], rel=0.05)
    assert 100 * divergence.same_top.value == pytest.approx(recorded["same_top_percent"][0], abs=0.3)


def test_sizes_are_those_of_the_file(result, q4_k_m):
    model = result.models[1]
    assert model.n_bytes == q4_k_m.stat().st_size == RECORDED["files"]["Q4_K_M"]["bytes"]
    assert 5 < model.bits_per_weight < 6
    assert result.models[0].bits_per_weight == pytest.approx(16, abs=0.1)


def test_speeds_have_their_samples(result):
    for model in result.models:
        assert (model.prompt.test, model.generation.test) == ("pp64", "tg16")
        for speed in (model.prompt, model.generation):
            assert len(speed.samples) == 3
            assert min(speed.samples) <= speed.tokens_per_second <= max(speed.samples)
            assert speed.deviation == pytest.approx(np.std(speed.samples, ddof=1))
            assert speed.tokens_per_second > 10


def test_the_table_shows_every_file_within_100_columns(result):
    table = bench_table(result)
    lines = table.splitlines()
    assert max(map(len, lines[: lines.index("")])) <= 100
    assert [line.split()[0] for line in lines[3:6]] == ["example-BF16", "example-Q4_K_M", "example-F32"]
    for words in ("MiB", "perplexity", "KL divergence", "same top", "pp64", "tg16", "tokens/s", "device: CPU"):
        assert words in table
    assert "reference: example-F32.gguf" in table
    assert "118 chunks of 512 tokens" in table


def test_the_result_is_json(result):
    again = json.loads(json.dumps(dataclasses.asdict(result), default=str, allow_nan=False))
    assert again["models"][1]["score"]["divergence"]["mean"]["value"] == result.models[1].score.divergence.mean.value
    assert again["versions"]["llama-cpp-python"] == llama_cpp.__version__


def test_a_reference_among_the_files_is_run_once_and_marked(example_bf16, q4_k_m):
    result = bench([example_bf16, q4_k_m], reference=example_bf16, text=TEXT, n_chunks=2, n_prompt=0, n_generate=0)
    assert [model.is_reference for model in result.models] == [True, False]
    assert result.models[0].score.divergence is None
    assert result.models[1].score.divergence.mean.value > 1e-4
    assert "reference" in bench_table(result).splitlines()[3]


def test_without_a_text_only_speed_is_measured(example_bf16):
    result = bench([example_bf16], n_prompt=32, n_generate=0, repetitions=1)
    assert result.models[0].score is None
    assert result.models[0].generation is None
    table = bench_table(result)
    assert "pp32" in table
    assert "perplexity" not in table


def test_what_cannot_be_measured_is_refused(example_bf16, tmp_path):
    with pytest.raises(InputError, match="no model"):
        bench([])
    with pytest.raises(InputError, match="give one"):
        bench([example_bf16], reference=example_bf16)
    with pytest.raises(InputError, match=r"missing\.gguf"):
        bench([tmp_path / "missing.gguf"])
    with pytest.raises(GgufError, match="not a GGUF file"):
        bench([TEXT])
    with pytest.raises(InputError, match="at least one repetition"):
        bench([example_bf16], repetitions=0)
