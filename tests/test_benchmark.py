"""The bench as a whole: numbers of llama.cpp's tools, sizes, speeds, and clear refusals."""

import ctypes
import json
from dataclasses import replace
from pathlib import Path

import llama_cpp
import pytest
from checkpoints import EXAMPLE

from gemma4_quant.benchmark import BenchOptions, bench
from gemma4_quant.errors import GgufError, InputError, RunError
from gemma4_quant.measuring import capacity
from gemma4_quant.measuring.result_files import from_json, to_json
from gemma4_quant.measuring.scored_text import WindowOptions
from gemma4_quant.measuring.scoring import ScoringOptions
from gemma4_quant.measuring.speed_plan import SpeedPlan
from gemma4_quant.runner.session import Session
from gemma4_quant.texts.framing import Framing

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


RAW = BenchOptions(framing=Framing.RAW, speed=None)
SHORT = replace(RAW, windows=WindowOptions(n_chunks=2))
FAST = SpeedPlan(n_prompt=(16,), n_generate=(4,), repetitions=1)


@pytest.fixture(scope="module")
def result(q4_k_m, example_bf16, example_f32):
    return bench([example_bf16, q4_k_m, example_f32], reference=example_f32, texts=[TEXT], options=RAW)


def test_perplexities_are_those_of_llama_perplexity(result):
    recorded = [RECORDED["bf16_ppl"], RECORDED["files"]["Q4_K_M"]["ppl"], RECORDED["reference_ppl"]]
    for model, (value, error) in zip(result.models, recorded, strict=True):
        overall = model.score.overall
        assert overall.perplexity.value == pytest.approx(value, rel=5e-4)
        assert overall.perplexity.error == pytest.approx(error, rel=5e-3)
        assert overall.perplexity.low < overall.perplexity.value < overall.perplexity.high
        assert (overall.n_chunks, overall.n_positions) == (118, 118 * 255)


def test_divergence_of_a_quantized_file_is_that_of_llama_perplexity(result):
    divergence, recorded = result.models[1].score.overall.divergence, RECORDED["files"]["Q4_K_M"]
    assert divergence.kl.mean.value == pytest.approx(recorded["mean_kld"][0], rel=0.02)
    assert divergence.kl.mean.error == pytest.approx(recorded["mean_kld"][1], rel=0.1)
    assert divergence.kl.percentile_99.value == pytest.approx(recorded["p99_kld"], rel=0.05)
    assert 100 * divergence.same_top.value == pytest.approx(recorded["same_top_percent"][0], abs=0.3)


def test_positions_and_domains_add_up(result):
    for model in result.models:
        score = model.score
        assert sum(each.n_positions for each in score.by_position) == score.overall.n_positions
        assert (score.by_position[0].first, score.by_position[-1].last) == (257, 511)
        assert [domain.domain for domain in score.domains] == ["evaluation.txt"]
        assert score.domains[0].score.perplexity.value == score.overall.perplexity.value
    scored = result.models[1].score
    weighted = sum(each.n_positions * each.kl.value for each in scored.by_position) / scored.overall.n_positions
    assert weighted == pytest.approx(scored.overall.divergence.kl.mean.value)
    assert len(scored.sample) == 1000
    assert all(0 <= pair.reference <= 1 and 0 <= pair.model <= 1 for pair in scored.sample)


def test_sizes_are_those_of_the_file(result, q4_k_m):
    model = result.models[1].file
    assert model.n_bytes == q4_k_m.stat().st_size == RECORDED["files"]["Q4_K_M"]["bytes"]
    assert 5 < model.bits_per_weight < 6
    assert (model.file_type, model.architecture) == ("Q4_K_M", "gemma4")
    assert sum(share.n_weights for share in model.types) == model.n_weights
    assert result.models[0].file.bits_per_weight == pytest.approx(16, abs=0.1)


def test_what_was_measured_can_be_stored_and_read(result):
    assert from_json(to_json(result)) == result
    assert result.conditions.versions["llama-cpp-python"] == llama_cpp.__version__
    assert result.conditions.framing == "raw"


def test_a_reference_among_the_files_is_run_once_and_marked(example_bf16, q4_k_m):
    result = bench([example_bf16, q4_k_m], reference=example_bf16, texts=[TEXT], options=SHORT)
    assert [model.is_reference for model in result.models] == [True, False]
    assert result.models[0].score.overall.divergence is None
    assert result.models[1].score.overall.divergence.kl.mean.value > 1e-4
    assert result.reference.model.files == result.models[0].file.files


def test_without_a_text_only_speed_is_measured(example_bf16):
    result = bench([example_bf16], texts=[], options=BenchOptions(speed=FAST))
    (model,) = result.models
    assert model.score is None
    assert [speed.test for speed in model.speeds.speeds] == ["pp16", "tg4"]
    assert result.texts == ()


def test_text_is_framed_as_the_models_own_turn_unless_raw_is_asked_for(example_bf16, caplog):
    framed = bench([example_bf16], texts=[TEXT], options=replace(SHORT, framing=None))
    assert framed.conditions.framing == "turn"
    assert not caplog.records
    bench([example_bf16], texts=[TEXT], options=SHORT)
    assert "never saw raw text outside of a turn" in caplog.text


def test_the_examples_chats_are_likelier_in_their_frame(example_bf16):
    chats = EXAMPLE / "evaluation_chat.jsonl"
    windows = WindowOptions(n_chunks=30)
    framed, raw = (
        bench([example_bf16], texts=[chats], options=replace(RAW, framing=framing, windows=windows))
        for framing in (None, Framing.RAW)
    )
    framed_perplexity, raw_perplexity = (result.models[0].score.overall.perplexity.value for result in (framed, raw))
    assert framed_perplexity < 0.98 * raw_perplexity


def test_a_model_too_big_for_memory_is_refused_before_it_is_loaded(example_bf16, monkeypatch):
    monkeypatch.setattr(capacity, "free_bytes", lambda: 100 << 20)
    monkeypatch.setattr("gemma4_quant.measuring.scoring.free_bytes", lambda: 100 << 20)
    with pytest.raises(
        RunError, match=r"example-BF16.gguf would need about 0\.\d GiB of memory, and 0\.1 GiB are free"
    ):
        bench([example_bf16], texts=[TEXT], options=SHORT)
    forced = bench([example_bf16], texts=[TEXT], options=replace(SHORT, scoring=ScoringOptions(force=True)))
    assert forced.models[0].score is not None


def test_a_failure_keeps_what_was_computed_and_can_be_resumed(example_bf16, q4_k_m, tmp_path, monkeypatch):
    kept = ScoringOptions(folder=tmp_path)
    options = replace(SHORT, scoring=kept, windows=WindowOptions(n_ctx=512, n_chunks=9))
    decode, n_done = Session.decode_tokens, 0

    def fail_late(session, *arguments):
        nonlocal n_done
        is_candidate = session.model.path == q4_k_m
        n_done += is_candidate
        if is_candidate and n_done == 2:
            raise RunError("llama.cpp failed")
        return decode(session, *arguments)

    monkeypatch.setattr(Session, "decode_tokens", fail_late)
    result = bench([example_bf16, q4_k_m], reference=example_bf16, texts=[TEXT], options=options)
    assert result.models[0].score is not None
    assert result.models[1].score is None
    assert "llama.cpp failed" in result.models[1].failure
    assert [path.suffix for path in tmp_path.iterdir()] == [".scores"]
    resumed = replace(options, scoring=replace(kept, resume=True))
    again = bench([example_bf16, q4_k_m], reference=example_bf16, texts=[TEXT], options=resumed)
    assert again.models[1].failure is None
    assert again.models[0].score.overall == result.models[0].score.overall
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_measured_is_refused(example_bf16, tmp_path):
    with pytest.raises(InputError, match="no model"):
        bench([])
    with pytest.raises(InputError, match="give one"):
        bench([example_bf16], reference=example_bf16, texts=[])
    with pytest.raises(InputError, match=r"missing\.gguf"):
        bench([tmp_path / "missing.gguf"])
    with pytest.raises(GgufError, match="not a GGUF file"):
        bench([TEXT])
    with pytest.raises(InputError, match="at least one repetition"):
        bench([example_bf16], options=BenchOptions(speed=SpeedPlan(repetitions=0)))
