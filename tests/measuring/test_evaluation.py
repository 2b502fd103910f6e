"""Scoring in pieces and in groups, of models beside a reference, and of those that fail on the way."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import EXAMPLE

from gemma4_quant.errors import NonFiniteError, RunError
from gemma4_quant.measuring import decoding
from gemma4_quant.measuring.decoding import RunOptions, pieces, session_options
from gemma4_quant.measuring.evaluation import Candidate, evaluate
from gemma4_quant.measuring.references import ModelReference
from gemma4_quant.measuring.score_store import ScoreStore
from gemma4_quant.measuring.scored_text import Domain, WindowOptions, scored_text
from gemma4_quant.progress import SilentProgress
from gemma4_quant.runner.session import Session
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.texts.documents import Document, read_documents
from gemma4_quant.texts.framing import Framing

CACHE_NOISE = 5e-3
"""How much a likelihood may change when batches are cut otherwise: the KV cache is F16."""

TEXT = Domain("text", "evaluation.txt", read_documents(EXAMPLE / "evaluation.txt"))


@pytest.fixture(scope="module")
def bf16(example_bf16):
    with LoadedModel(example_bf16) as model:
        yield model


@pytest.fixture(scope="module")
def f32(example_f32):
    with LoadedModel(example_f32) as model:
        yield model


class Recorder:
    """Progress that remembers."""

    def __init__(self):
        self.calls = []

    def start(self, label, total, unit):
        self.calls.append((label, total, unit))

    def advance(self, n):
        self.calls.append(n)

    def finish(self):
        self.calls.append("finish")


def run(models, text, *, reference=None, progress=None, store=None, spoil=None):
    """Score models beside each other; return their scores and the failures."""
    runners = list(dict.fromkeys([*([reference] if reference else []), *models]))
    sizes = session_options([p.window for p in text.passages], models[0].n_vocab, len(runners), RunOptions())
    sessions = {model: Session(model, sizes) for model in runners}
    if spoil is not None:
        spoil(sessions)
    store = store or ScoreStore(len(models), text.n_positions)
    try:
        failures = evaluate(
            [Candidate(sessions[model], row) for row, model in enumerate(models)],
            text,
            None if reference is None else ModelReference(sessions[reference]),
            store,
            sizes,
            progress or SilentProgress(),
        )
    finally:
        for session in sessions.values():
            session.close()
    return [store.scores(row) for row in range(len(models))], failures


def raw_text(model, n_chunks=4, n_ctx=128):
    return scored_text(model, [TEXT], Framing.RAW, WindowOptions(n_ctx, n_chunks))


def test_a_copy_of_the_reference_does_not_diverge(f32, example_f32):
    with LoadedModel(example_f32) as copy:
        ((score,), failures) = run([copy], raw_text(f32), reference=f32)
    assert not failures
    assert score.divergence.max() < 1e-9
    assert score.same_top.all()


def test_a_reference_among_the_models_is_scored_without_divergence(f32, bf16):
    text = raw_text(f32)
    (own, other), _ = run([f32, bf16], text, reference=f32)
    ((alone,), _) = run([f32], text)
    np.testing.assert_allclose(own.nll, alone.nll, atol=CACHE_NOISE)
    assert own.divergence is None
    np.testing.assert_allclose(other.reference_nll, own.nll, rtol=1e-11)
    assert 1e-7 < other.divergence.mean() < 1e-3


def test_little_memory_changes_the_pieces_but_not_the_score(f32, monkeypatch):
    text = raw_text(f32, 6)
    ((whole,), _) = run([f32], text)
    monkeypatch.setattr(decoding, "LOGITS_BYTES", 2 * 20 * 4 * f32.n_vocab)
    monkeypatch.setattr(decoding, "BATCH_TOKENS", 50)
    ((in_pieces,), _) = run([f32], text)
    assert len(whole.nll) == 6 * 63
    np.testing.assert_allclose(in_pieces.nll, whole.nll, atol=CACHE_NOISE)


def test_windows_of_many_lengths_score_as_each_alone(f32):
    words = TEXT.documents[0].content.split()
    documents = tuple(Document(str(i), " ".join(words[90 * i :][:n])) for i, n in enumerate((5, 60, 17, 33, 8)))
    together = scored_text(f32, [Domain("many", "many", documents)], Framing.TURN, WindowOptions(128))
    ((all_scores,), _) = run([f32], together)
    alone = []
    for document in documents:
        ((scores,), _) = run(
            [f32], scored_text(f32, [Domain("one", "one", (document,))], Framing.TURN, WindowOptions(128))
        )
        alone.append(scores.nll)
    np.testing.assert_allclose(all_scores.nll, np.concatenate(alone), atol=CACHE_NOISE)


def test_pieces_hold_every_token_once(f32):
    text = raw_text(f32, 3)
    windows = [passage.window for passage in text.passages]
    sizes = replace(session_options(windows, f32.n_vocab, 1, RunOptions()), n_batch=100, n_outputs=7)
    cut = pieces(windows, sizes)
    assert all(len(piece.tokens) <= 100 and piece.wanted.sum() == len(piece.targets) <= 7 for piece in cut)
    np.testing.assert_array_equal(
        np.concatenate([piece.tokens for piece in cut]), np.concatenate([window.tokens for window in windows])
    )
    targets = np.concatenate([window.tokens[window.is_scored] for window in windows])
    np.testing.assert_array_equal(np.concatenate([piece.targets for piece in cut]), targets)


def test_logits_of_all_sessions_stay_within_their_memory(f32):
    windows = [passage.window for passage in raw_text(f32, 4).passages]
    for n_sessions in (1, 2, 5):
        sizes = session_options(windows, 262_144, n_sessions, RunOptions())
        assert 2 * n_sessions * sizes.n_outputs * 4 * 262_144 <= 512 << 20


def test_progress_counts_every_chunk(f32):
    recorder = Recorder()
    run([f32], raw_text(f32, 7), progress=recorder)
    assert recorder.calls[0] == ("evaluate", 7, "chunk")
    assert recorder.calls[-1] == "finish"
    assert sum(recorder.calls[1:-1]) == 7


def failing(session, after, error):
    """Make a session fail after some decodes."""
    decode, n_done = session.decode_tokens, 0

    def decode_tokens(*arguments):
        nonlocal n_done
        n_done += 1
        if n_done > after:
            raise error
        return decode(*arguments)

    session.decode_tokens = decode_tokens


def test_a_model_that_fails_does_not_stop_the_others(f32, bf16, monkeypatch):
    monkeypatch.setattr(decoding, "_MAX_SEQUENCES", 2)
    text = raw_text(f32, 4)
    (scores, other), failures = run(
        [f32, bf16], text, reference=f32, spoil=lambda found: failing(found[bf16], 1, RunError("out of memory"))
    )
    assert scores is not None
    assert other is None
    assert str(failures[1]) == "example-BF16.gguf: out of memory"


def test_logits_that_are_not_finite_name_the_model(f32, bf16):
    def spoil(sessions):
        decode = sessions[bf16].decode_tokens
        sessions[bf16].decode_tokens = lambda *arguments: decode(*arguments) * np.float32(np.nan)

    _, failures = run([f32, bf16], raw_text(f32), reference=f32, spoil=spoil)
    assert isinstance(failures[1], NonFiniteError)
    assert str(failures[1]).startswith("example-BF16.gguf: the model's logits are NaN")


def test_an_interrupted_run_goes_on_where_it_ended(f32, bf16, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_MAX_SEQUENCES", 3)
    text, key = raw_text(f32, 12, 64), bytes(32)
    with (
        ScoreStore(1, text.n_positions, tmp_path / "scores", key=key) as store,
        pytest.raises(RunError, match="the reference"),
    ):
        run(
            [bf16],
            text,
            reference=f32,
            store=store,
            spoil=lambda found: failing(found[f32], 2, RunError("the reference fails")),
        )
    calls = []

    def count(sessions):
        decode = sessions[f32].decode_tokens
        sessions[f32].decode_tokens = lambda *arguments: calls.append(1) or decode(*arguments)

    with ScoreStore(1, text.n_positions, tmp_path / "scores", key=key) as store:
        ((resumed,), _) = run([bf16], text, reference=f32, store=store, spoil=count)
    ((whole,), _) = run([bf16], text, reference=f32)
    sizes = session_options([p.window for p in text.passages], f32.n_vocab, 2, RunOptions())
    assert sizes.n_sequences == 3
    assert len(calls) == 2  # of four groups, two were done
    np.testing.assert_array_equal(resumed.nll, whole.nll)
    np.testing.assert_array_equal(resumed.divergence, whole.divergence)
