"""Compactly stored predictions: what they cost, how close divergence from them is, and what is no such file."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import EXAMPLE
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_quant.benchmark import BenchOptions, bench
from gemma4_quant.errors import InputError, MismatchError, NonFiniteError, ResultsError
from gemma4_quant.measuring import compact_reference, llama_logits
from gemma4_quant.measuring.compact_reference import CompactFile, CompactWriter, record_bytes
from gemma4_quant.measuring.fairness import Identity
from gemma4_quant.measuring.position_scores import compare
from gemma4_quant.measuring.reference_choice import SaveOptions
from gemma4_quant.measuring.results import ReferenceKind, TextUsed
from gemma4_quant.measuring.scored_text import Passage, ScoredText, WindowOptions
from gemma4_quant.texts.packing import Window

TEXT = EXAMPLE / "evaluation.txt"
GEMMA = 262_144
SHORT = BenchOptions(speed=None, windows=WindowOptions(128, 6))


def zipf_logits(seed, shape, noise=0.0):
    """Return logits as language models have them: likelihoods that fall with a power of the rank, shuffled."""
    generator = np.random.default_rng(seed)
    ranks = np.argsort(generator.random(shape), axis=1)
    logits = -1.3 * np.log1p(ranks) + generator.normal(0, 0.5, shape)
    return (logits + noise * np.random.default_rng(seed + 1).standard_normal(shape)).astype(np.float32)


def text_of(n_positions, n_vocab):
    """Return a text of one window with so many scored positions."""
    tokens = np.arange(n_positions + 1, dtype=np.int32) % n_vocab
    window = Window(0, tokens, np.arange(n_positions + 1) > 0)
    used = TextUsed("d", "s", "0" * 64, 1, n_positions + 1, 1, n_positions)
    return ScoredText("raw", n_positions + 1, (used,), (Passage(0, 0, window),))


def stored(path, logits):
    text = text_of(len(logits), logits.shape[1])
    with CompactWriter(path, logits.shape[1], text, Identity("m", {}, (), False)) as writer:
        half = len(logits) // 2
        targets = text.passages[0].window.tokens[1:]
        writer.record(logits[:half], targets[:half], 2)
        writer.record(logits[half:], targets[half:], 1)
    return CompactFile(path), targets


class Piece:
    """As much of a piece as stored predictions ask for."""

    def __init__(self, targets):
        self.targets = targets


def compared(file, candidate, targets):
    reference = file.reference()
    return reference.predictions(Piece(targets), 0).compare(candidate, targets, 2), reference


def test_a_position_takes_a_fiftieth_of_llama_cpps_file():
    assert 50 * record_bytes(GEMMA) <= llama_logits.record_bytes(GEMMA) == 524_296
    assert llama_logits.record_bytes(GEMMA) / record_bytes(GEMMA) > 85


def test_mean_divergence_at_gemmas_vocabulary_is_within_a_hundredth(tmp_path):
    reference, candidate = zipf_logits(1, (24, GEMMA)), zipf_logits(1, (24, GEMMA), noise=0.1)
    file, targets = stored(tmp_path / "r", reference)
    found, stored_reference = compared(file, candidate, targets)
    exact = compare(reference, candidate, targets)
    # A tenth of the mass is in the tail here, more than in most texts; over 24 positions its sample averages out.
    assert file.records(0, 24)["tail"].mean() > 0.1
    assert found.divergence.mean() == pytest.approx(exact.divergence.mean(), rel=0.01)
    assert abs(found.divergence.mean() - exact.divergence.mean()) < 4 * stored_reference.storage_error
    np.testing.assert_allclose(found.divergence, exact.divergence, rtol=0.25)
    np.testing.assert_array_equal(found.same_top, exact.same_top)
    np.testing.assert_allclose(found.nll, exact.nll, rtol=1e-12)
    np.testing.assert_allclose(found.reference_nll, exact.reference_nll, rtol=1e-12)


def test_the_stated_error_is_that_of_many_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(compact_reference, "TOP_TOKENS", 16)
    monkeypatch.setattr(compact_reference, "SAMPLE_TOKENS", 32)
    n = 400
    reference, candidate = zipf_logits(2, (n, 3000)), zipf_logits(2, (n, 3000), noise=0.3)
    file, targets = stored(tmp_path / "r", reference)
    found, stored_reference = compared(file, candidate, targets)
    errors = found.divergence - compare(reference, candidate, targets).divergence
    # Drawing at even steps is never worse than drawing at random, which is what the stated error is of.
    assert 0.3 < errors.std() / (stored_reference.storage_error * np.sqrt(n)) < 1.3
    assert abs(errors.mean()) < 4 * stored_reference.storage_error


def test_without_the_sample_of_the_tail_the_divergence_would_be_too_small(tmp_path):
    """The sample earns its place: top tokens and tail mass alone miss what happens inside of the tail."""
    reference, candidate = zipf_logits(3, (8, 50_000)), zipf_logits(3, (8, 50_000), noise=0.3)
    file, targets = stored(tmp_path / "r", reference)
    found, _ = compared(file, candidate, targets)
    exact = compare(reference, candidate, targets).divergence
    records = file.records(0, 8)
    lumped = []
    for row, logits in zip(records, candidate.astype(np.float64), strict=True):
        log_q = logits - np.logaddexp.reduce(logits)
        p, q = np.exp(row["top_log_p"].astype(np.float64)), np.exp(log_q[row["top_ids"]])
        lumped.append((p * np.log(p / q)).sum() + row["tail"] * np.log(row["tail"] / (1 - q.sum())))
    assert np.mean(lumped) < 0.9 * exact.mean()
    assert found.divergence.mean() == pytest.approx(exact.mean(), rel=0.03)


@given(seed=st.integers(0, 2**32), n_vocab=st.sampled_from([2, 3, 500, 768]))
@settings(max_examples=15, deadline=None)
def test_a_small_vocabulary_is_stored_whole(tmp_path_factory, seed, n_vocab):
    reference, candidate = zipf_logits(seed, (4, n_vocab)), zipf_logits(seed, (4, n_vocab), noise=0.2)
    file, targets = stored(tmp_path_factory.mktemp("r") / "r", reference)
    found, stored_reference = compared(file, candidate, targets)
    exact = compare(reference, candidate, targets)
    np.testing.assert_allclose(found.divergence, exact.divergence, rtol=1e-4, atol=1e-10)
    assert stored_reference.storage_error == 0


@pytest.mark.parametrize("n_vocab", [900, 5000])
def test_records_hold_the_likeliest_tokens_and_the_mass_of_the_others(tmp_path, n_vocab):
    logits = zipf_logits(4, (6, n_vocab)).round(1)  # with ties
    file, _ = stored(tmp_path / "r", logits)
    records = file.records(0, 6)
    shifted = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True)
    for record, log_p in zip(records, shifted, strict=True):
        expected = np.sort(np.argsort(-log_p, kind="stable")[:512])
        np.testing.assert_array_equal(record["top_ids"], expected)
        np.testing.assert_allclose(record["top_log_p"], log_p[expected], rtol=1e-6)
        rest = np.setdiff1d(np.arange(n_vocab), expected)
        assert record["tail"] == pytest.approx(np.exp(log_p[rest]).sum())
        assert np.isin(record["sample_ids"], rest).all()
        np.testing.assert_allclose(record["sample_log_p"], log_p[record["sample_ids"]], rtol=1e-6)
        assert record["best"] == log_p.argmax()


def test_the_sample_is_drawn_in_proportion_to_likelihood(tmp_path):
    logits = np.repeat(zipf_logits(5, (1, 2000)), 400, axis=0)
    file, _ = stored(tmp_path / "r", logits)
    records = file.records(0, 400)
    counts = np.bincount(records["sample_ids"].reshape(-1), minlength=2000) / records["sample_ids"].size
    p = np.exp(logits[0].astype(np.float64))
    p[records[0]["top_ids"]] = 0
    np.testing.assert_allclose(counts, p / p.sum(), rtol=0.1, atol=2e-4)


@pytest.mark.parametrize(
    "row", [np.zeros(2000), np.where(np.arange(2000) == 7, 0.0, -1e4), np.linspace(0, 3000, 2000)]
)
def test_odd_distributions_do_not_diverge_from_themselves(tmp_path, row):
    logits = np.tile(row.astype(np.float32), (3, 1))
    file, targets = stored(tmp_path / "r", logits)
    found, _ = compared(file, logits, targets)
    assert np.abs(found.divergence).max() < 1e-9


def test_logits_that_are_not_finite_are_not_stored(tmp_path):
    logits = zipf_logits(6, (4, 1000))
    logits[2, 5] = np.nan
    with pytest.raises(NonFiniteError):
        stored(tmp_path / "r", logits)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def saved(example_f32, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "reference"
    bench([], reference=example_f32, texts=[TEXT], options=replace(SHORT, save=SaveOptions(path)))
    return path


def test_a_stored_reference_stands_in_for_its_model(saved, example_f32, example_bf16):
    direct = bench([example_bf16], reference=example_f32, texts=[TEXT], options=SHORT)
    (ours, theirs) = (
        result.models[0].score.overall
        for result in (bench([example_bf16, example_f32], reference=saved, options=SHORT), direct)
    )
    assert ours.n_positions == theirs.n_positions
    assert ours.divergence.kl.mean.value == pytest.approx(theirs.divergence.kl.mean.value, rel=0.02)
    assert ours.divergence.reference_perplexity.value == pytest.approx(
        theirs.divergence.reference_perplexity.value, rel=1e-4
    )
    result = bench([example_f32], reference=saved, options=SHORT)
    assert result.models[0].score.overall.divergence.kl.mean.value < 1e-6
    assert result.reference.kind is ReferenceKind.COMPACT
    assert result.reference.model.files[0].name == "example-F32.gguf"
    assert result.reference.stored_bytes == saved.stat().st_size
    assert result.conditions.framing == "turn"
    assert result.texts == direct.texts


def test_short_memory_compares_with_a_reference_stored_for_the_moment(example_f32, example_bf16, monkeypatch, caplog):
    direct = bench([example_f32, example_bf16], reference=example_f32, texts=[TEXT], options=SHORT)
    monkeypatch.setattr("gemma4_quant.measuring.scoring.Scorer._fits", lambda _self, _models: False)
    result = bench([example_f32, example_bf16], reference=example_f32, texts=[TEXT], options=SHORT)
    assert "one model is loaded at a time" in caplog.text
    assert result.models[0].score.overall.divergence is None
    found, expected = (each.models[1].score.overall.divergence.kl.mean.value for each in (result, direct))
    assert found == pytest.approx(expected, rel=0.02)
    assert result.reference.storage_error < 0.01 * expected


def test_a_text_beside_stored_predictions_is_refused(saved, example_bf16):
    with pytest.raises(InputError, match="bring their own text"):
        bench([example_bf16], reference=saved, texts=[TEXT], options=SHORT)
    with pytest.raises(InputError, match="give the model"):
        bench([example_bf16], reference=saved, options=replace(SHORT, save=SaveOptions(saved.with_suffix(".2"))))


def test_a_model_of_another_kind_is_refused(saved, moe_bf16):
    with pytest.raises(MismatchError, match=r"moe-BF16.gguf and example-F32.gguf differ in"):
        bench([moe_bf16], reference=saved, options=SHORT)


def with_header(change):
    def spoil(data):
        (length,) = struct.unpack("<Q", data[8:16])
        header = json.loads(data[16 : 16 + length])
        change(header)
        raw = json.dumps(header).encode()
        return data[:8] + struct.pack("<Q", len(raw)) + raw + data[16 + length :]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-1], "cut short or damaged"),
        (lambda data: data[:9], "cut short"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "damaged header"),
        (lambda data: data[:16] + b"{" * 100 + data[116:], "not valid JSON|nested too deeply"),
        (with_header(lambda header: header.update(n_top=0)), "impossible counts"),
        (with_header(lambda header: header.update(n_top=10**9)), "impossible counts"),
        (with_header(lambda header: header.update(n_vocab="many")), "n_vocab is the text 'many'"),
        (with_header(lambda header: header.update(n_windows=10**6)), "cut short|impossible"),
        (with_header(lambda header: header.update(n_tokens=10**12)), "impossible counts"),
        (with_header(lambda header: header.update(domains=[])), "impossible counts"),
        (with_header(lambda header: header.pop("identity")), "identity is missing"),
        (with_header(lambda header: header.update(n_ctx=3)), "impossible lengths"),
        (lambda data: data[:-8] + b"\xff" * 8, "damaged predictions"),
    ],
)
def test_damaged_files_are_refused(saved, example_f32, tmp_path, spoil, message):
    path = tmp_path / "damaged"
    path.write_bytes(spoil(saved.read_bytes()))
    with pytest.raises(ResultsError, match=message):
        bench([example_f32], reference=path, options=SHORT)


def test_files_with_random_bytes_changed_are_refused_or_read(saved, tmp_path):
    data = saved.read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "random"
    for _ in range(60):
        spoiled = bytearray(data)
        for place in generator.integers(0, 4096, 3):
            spoiled[place] = generator.integers(256)
        path.write_bytes(spoiled)
        try:
            file = CompactFile(path)
            file.records(0, 5)
        except (ResultsError, InputError) as error:
            assert str(path) in str(error)  # noqa: PT017 - a change may do no harm
