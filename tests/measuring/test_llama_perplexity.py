"""The numbers of llama-perplexity, and its files of stored log-probabilities, as recorded in tests/golden."""

import ctypes
import json
import lzma
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from checkpoints import EXAMPLE

from gemma4_quant.benchmark import BenchOptions, bench
from gemma4_quant.errors import InputError, MismatchError, ResultsError
from gemma4_quant.measuring.llama_logits import LlamaFile, record_bytes
from gemma4_quant.measuring.reference_choice import SaveOptions
from gemma4_quant.measuring.results import ReferenceKind
from gemma4_quant.measuring.scored_text import WindowOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.text import read_text
from gemma4_quant.texts.framing import Framing

TEXT = EXAMPLE / "evaluation.txt"
GOLDEN = Path(__file__).parent.parent / "golden"
RECORDED = json.loads((GOLDEN / "perplexity.json").read_text(encoding="utf-8"))
RAW = BenchOptions(framing=Framing.RAW, speed=None)


@pytest.fixture(scope="module")
def q4_k_m(example_bf16, tmp_path_factory):
    """The example quantized by llama.cpp, as the recorded one was."""
    path = tmp_path_factory.mktemp("q4") / "example-Q4_K_M.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, 1
    assert not llama_cpp.llama_model_quantize(str(example_bf16).encode(), str(path).encode(), ctypes.byref(params))
    return path


@pytest.fixture(scope="module")
def recorded_file(tmp_path_factory):
    """What llama-perplexity stored of the F32 file: three chunks of 16 tokens."""
    path = tmp_path_factory.mktemp("logits") / "recorded.logits"
    path.write_bytes(lzma.decompress((GOLDEN / "example.logits.xz").read_bytes()))
    return path


def windows(n_ctx, n_chunks, stride=None):
    return replace(RAW, windows=WindowOptions(n_ctx, n_chunks, stride))


@pytest.mark.parametrize("kind", ["e", "moe"])
@pytest.mark.parametrize(("n_ctx", "n_chunks"), [(128, 8), (512, 4), (1000, 2)])
def test_perplexity_has_four_digits_of_llama_perplexity(kind, n_ctx, n_chunks, example_bf16, moe_bf16):
    model = {"e": example_bf16, "moe": moe_bf16}[kind]
    (result,) = bench([model], texts=[TEXT], options=windows(n_ctx, n_chunks)).models
    value, error = RECORDED[kind][f"c{n_ctx}"]
    assert result.score.overall.perplexity.value == pytest.approx(value, rel=5e-5)
    assert result.score.overall.perplexity.error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("kind", ["e", "moe"])
@pytest.mark.parametrize(
    ("n_ctx", "stride", "n_chunks", "name"), [(240, 32, 12, "c240-s32"), (480, 64, 6, "c480-s64")]
)
def test_strided_perplexity_has_four_digits_of_llama_perplexity(
    kind, n_ctx, stride, n_chunks, name, example_bf16, moe_bf16
):
    model = {"e": example_bf16, "moe": moe_bf16}[kind]
    (result,) = bench([model], texts=[TEXT], options=windows(n_ctx, n_chunks, stride)).models
    assert result.score.overall.perplexity.value == pytest.approx(RECORDED[kind][name], rel=5e-5)


def columns(divergence, perplexity):
    """Return our statistics under the names, and in the units, that llama-perplexity prints."""
    places = {
        "Maximum": "maximum", "99.9%": "percentile_99_9", "99.0%": "percentile_99", "95.0%": "percentile_95",
        "90.0%": "percentile_90", "75.0%": "percentile_75", "Median": "median", "25.0%": "percentile_25",
        "10.0%": "percentile_10", "5.0%": "percentile_5", "1.0%": "percentile_1", "0.1%": "percentile_0_1",
        "Minimum": "minimum", "Mean": "mean",
    }  # fmt: skip
    found = {f"{name} KLD": getattr(divergence.kl, place) for name, place in places.items()}
    percent = {f"{name} Δp": getattr(divergence.delta_p, place) for name, place in places.items()}
    percent |= {"RMS Δp": divergence.delta_p_rms, "Same top p": divergence.same_top}
    found |= {
        name: replace(each, value=100 * each.value, error=None if each.error is None else 100 * each.error)
        for name, each in percent.items()
    }
    found |= {
        "Mean PPL(Q)": perplexity,
        "Mean PPL(base)": divergence.reference_perplexity,
        "Mean ln(PPL(Q)/PPL(base))": divergence.log_perplexity_ratio,
        "Mean PPL(Q)/PPL(base)": divergence.perplexity_ratio,
        "Mean PPL(Q)-PPL(base)": divergence.perplexity_difference,
    }
    return found


CLIPPED = {"Mean PPL(base)", "Mean ln(PPL(Q)/PPL(base))", "Mean PPL(Q)/PPL(base)", "Mean PPL(Q)-PPL(base)"}
"""Columns that llama-perplexity computes from stored likelihoods, clipped 16 nats below the likeliest token's."""


def check_columns(result, recorded, *, left_out=frozenset()):
    divergence, perplexity = result.score.overall.divergence, result.score.overall.perplexity
    ours = columns(divergence, perplexity)
    assert set(recorded) - set(ours) == {"Cor(ln(PPL(Q)), ln(PPL(base)))"}
    for name, (value, *error) in recorded.items():
        if name in ours and name not in left_out:
            # It stores the reference in 16 bits, which moves single values by some 1e-6, and prints so many digits.
            digits = 2e-3 if "Δp" in name or "top p" in name else 4e-6
            assert ours[name].value == pytest.approx(value, rel=0.01, abs=digits), name
            if error and error[0]:
                assert ours[name].error == pytest.approx(error[0], rel=0.02, abs=digits), name
    assert 100 * divergence.nll_correlation == pytest.approx(recorded["Cor(ln(PPL(Q)), ln(PPL(base)))"][0], abs=0.01)


@pytest.mark.parametrize(("n_ctx", "n_chunks"), [(512, 8), (16, 40)])
def test_every_column_of_kl_divergence_is_within_a_hundredth(n_ctx, n_chunks, q4_k_m, example_f32):
    (result,) = bench([q4_k_m], reference=example_f32, texts=[TEXT], options=windows(n_ctx, n_chunks)).models
    check_columns(result, RECORDED[f"kl-c{n_ctx}"], left_out=CLIPPED)
    # Ours of the reference is what llama-perplexity itself says of that file when it does not read it back.
    base = result.score.overall.divergence.reference_perplexity
    assert base.value == pytest.approx(RECORDED[f"base-c{n_ctx}"][0], rel=5e-5)


def test_a_file_written_in_llama_cpps_format_gives_the_same_columns(q4_k_m, example_f32, tmp_path):
    path = tmp_path / "f32.logits"
    save = SaveOptions(path, ReferenceKind.LLAMA)
    stored = bench([], reference=example_f32, texts=[TEXT], options=replace(windows(512, 8), save=save))
    assert stored.models == ()
    n_vocab = LlamaFile(path).n_vocab
    assert path.stat().st_size == 20 + 8 * 512 * 4 + 8 * 255 * record_bytes(n_vocab)
    result = bench([q4_k_m], reference=path, options=RAW)
    check_columns(result.models[0], RECORDED["kl-c512"])
    assert result.reference.kind is ReferenceKind.LLAMA
    assert result.reference.storage_error is None
    assert result.conditions.framing == "tokens"


def test_a_file_of_llama_perplexity_is_what_we_write(recorded_file, example_f32, tmp_path):
    options = replace(windows(16, 3), save=SaveOptions(tmp_path / "ours", ReferenceKind.LLAMA))
    bench([], reference=example_f32, texts=[TEXT], options=options)
    theirs, ours = LlamaFile(recorded_file), LlamaFile(tmp_path / "ours")
    assert (ours.n_ctx, ours.n_vocab, ours.n_chunks, ours.n_bytes) == (
        theirs.n_ctx,
        theirs.n_vocab,
        theirs.n_chunks,
        theirs.n_bytes,
    )
    (our_scales, our_codes), (their_scales, their_codes) = ours.records(0, 21), theirs.records(0, 21)
    np.testing.assert_allclose(our_scales, their_scales, rtol=1e-4)
    # The same log-probabilities, but for the F16 cache's rounding in batches of other sizes.
    our_log_p, their_log_p = (
        scales[:, :1] * codes + scales[:, 1:]
        for scales, codes in ((our_scales, our_codes), (their_scales, their_codes))
    )
    assert np.abs(our_log_p - their_log_p).max() < 0.01
    assert np.abs(our_log_p - their_log_p).mean() < 1e-3


def test_a_file_of_llama_perplexity_holds_our_text(recorded_file, example_f32):
    with LoadedModel(example_f32) as model:
        text = LlamaFile(recorded_file).text(model)
        tokens = model.tokenise(read_text(TEXT))
        assert all(passage.window.tokens[0] == model.bos for passage in text.passages)
    found = np.concatenate([passage.window.tokens[1:] for passage in text.passages])
    np.testing.assert_array_equal(found, tokens[:48].reshape(3, 16)[:, 1:].reshape(-1))


def test_a_model_compared_with_llama_perplexitys_file_of_itself_hardly_diverges(recorded_file, example_f32):
    result = bench([example_f32], reference=recorded_file, options=RAW)
    divergence = result.models[0].score.overall.divergence
    assert abs(divergence.kl.mean.value) < 1e-5
    assert divergence.same_top.value == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-2], "cut short or damaged"),
        (lambda data: data + bytes(2), "cut short or damaged"),
        (lambda data: data[:10], "cut short"),
        (lambda data: data[:8] + (0).to_bytes(4, "little") + data[12:], "no file of stored"),
        (lambda data: data[:8] + (2**31 - 1).to_bytes(4, "little") + data[12:], "cut short or damaged"),
        (lambda data: data[:12] + (-5).to_bytes(4, "little", signed=True) + data[16:], "no file of stored"),
        (lambda data: data[:20] + (10**6).to_bytes(4, "little") + data[24:], "outside of its vocabulary"),
        (lambda data: data[:212] + b"\xff\xff\xff\x7f" + data[216:], "damaged predictions from number 0"),
    ],
)
def test_damaged_files_of_log_probabilities_are_refused(recorded_file, example_f32, tmp_path, spoil, message):
    path = tmp_path / "damaged.logits"
    path.write_bytes(spoil(recorded_file.read_bytes()))
    with pytest.raises(ResultsError, match=message):
        bench([example_f32], reference=path, options=RAW)


def test_a_file_of_another_vocabulary_is_refused(recorded_file, moe_bf16, tmp_path):
    data = recorded_file.read_bytes()
    (n_vocab,) = np.frombuffer(data[12:16], "<i4")
    smaller = b"".join(data[212 + i * record_bytes(n_vocab) :][: record_bytes(n_vocab - 2)] for i in range(21))
    path = tmp_path / "other.logits"
    path.write_bytes(data[:12] + int(n_vocab - 2).to_bytes(4, "little") + data[16:212] + smaller)
    with pytest.raises(MismatchError, match=f"has {n_vocab} tokens and other.logits {n_vocab - 2}"):
        bench([moe_bf16], reference=path, options=RAW)


def test_framed_text_does_not_fit_llama_cpps_format(example_f32, tmp_path):
    save = SaveOptions(tmp_path / "x", ReferenceKind.LLAMA)
    options = replace(windows(64, 3), framing=None, save=save)
    with pytest.raises(InputError, match="nothing but raw text"):
        bench([], reference=example_f32, texts=[TEXT], options=options)
    assert list(tmp_path.iterdir()) == []
