"""Generation against evaluating the finished texts at once."""

import numpy as np
import pytest
from checkpoints import EXAMPLE

from gemma4_quant.errors import InputError, RunError
from gemma4_quant.runner import generation
from gemma4_quant.runner.generation import Opening, generate
from gemma4_quant.runner.sampling import SamplingOptions
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.vocabulary import Vocabulary
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.texts.documents import Chat
from gemma4_quant.texts.framing import Framer, Framing

GREEDY = SamplingOptions(n_tokens=24, temperature=0)
N_CTX = 200


@pytest.fixture(scope="module")
def model(example_f32):
    with LoadedModel(example_f32) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def openings(model):
    """Beginnings of different lengths: BOS alone, pieces of a text, one longer than a batch of others."""
    tokens = model.tokenise((EXAMPLE / "evaluation.txt").read_text(encoding="utf-8")[:3000])
    return [Opening(tokens[:n], stream, stops_at_turn=False) for stream, n in enumerate((1, 7, 150, 40, 3, 90))]


def test_greedy_texts_are_what_evaluating_them_at_once_prefers(model, openings):
    """Sequences of different lengths share batches and slots; none may see another."""
    answers = generate(model, openings, GREEDY, n_ctx=N_CTX, n_sequences=4, n_threads=1)
    options = SessionOptions(n_ctx=N_CTX, n_outputs=N_CTX, n_batch=N_CTX, n_threads=1)
    with Session(model, options) as session:
        for opening, answer in zip(openings, answers, strict=True):
            assert len(answer) == GREEDY.n_tokens
            whole = np.concatenate([opening.tokens, answer])
            session.clear()
            (logits,) = session.decode(whole[None, :-1], 0, slice(len(opening.tokens) - 1, None))
            chosen = logits[np.arange(len(answer)), answer]
            assert (chosen > logits.max(axis=1) - 1e-2).all()  # the KV cache is F16, and batches round differently


def test_the_same_seed_gives_the_same_texts_and_another_seed_others(model, openings):
    one, again, other = (
        generate(model, openings, SamplingOptions(24, seed), n_ctx=N_CTX, n_threads=1) for seed in (1, 1, 2)
    )
    for first, second in zip(one, again, strict=True):
        np.testing.assert_array_equal(first, second)
    assert any(not np.array_equal(first, second) for first, second in zip(one, other, strict=True))


def test_streams_continue_one_opening_differently(model):
    same = [Opening(np.array([model.bos], np.int32), stream, stops_at_turn=False) for stream in (0, 1, 0)]
    first, second, third = generate(model, same, SamplingOptions(24), n_ctx=64, n_threads=1)
    np.testing.assert_array_equal(first, third)
    assert not np.array_equal(first, second)


def test_answers_end_with_the_turn(model):
    with Framer(model, Framing.TURN) as framer:
        tokens = framer.opening(Chat(({"role": "user", "content": "Give a cynical definition."},)))
    vocabulary = Vocabulary(model)
    options = SamplingOptions(n_tokens=100)
    answers = generate(model, [Opening(tokens, i) for i in range(12)], options, n_ctx=160, n_threads=1)
    assert any(len(answer) < options.n_tokens for answer in answers)
    assert not any(vocabulary.ends_turn(token) for answer in answers for token in answer.tolist())


def test_free_text_goes_on_after_a_turn(model):
    """The example was trained on turns, and begins with them when it is free to."""
    free = [Opening(np.array([model.bos], np.int32), i, stops_at_turn=False) for i in range(16)]
    answers = generate(model, free, SamplingOptions(n_tokens=200), n_ctx=201, n_threads=1)
    vocabulary = Vocabulary(model)
    assert any(vocabulary.ends_turn(token) for answer in answers for token in answer[:-1].tolist())


def test_no_text_grows_beyond_the_context_or_the_tokens_asked_for(model, openings):
    said = []
    answers = generate(
        model, openings, SamplingOptions(n_tokens=30), n_ctx=160, n_threads=1, said=said.append, n_sequences=3
    )
    assert [len(answer) for answer in answers] == [30, 30, 10, 30, 30, 30]
    assert sum(said) == sum(map(len, answers))
    assert max(said) == 3


def test_memory_for_logits_bounds_how_many_texts_are_written_at_a_time(model, openings, monkeypatch):
    monkeypatch.setattr(generation, "LOGITS_BYTES", 2 * 4 * model.n_vocab)
    said = []
    generate(model, openings, SamplingOptions(n_tokens=4), n_ctx=N_CTX, n_threads=1, said=said.append)
    assert max(said) == 2


def test_an_opening_without_room_is_refused(model):
    for n_tokens in (0, 8):
        with pytest.raises(InputError, match=f"opening 0 has {n_tokens} tokens"):
            generate(model, [Opening(np.full(n_tokens, 5, np.int32))], GREEDY, n_ctx=8)
    assert generate(model, [], GREEDY, n_ctx=8) == []


def test_tokens_of_several_sequences_in_one_batch_have_the_logits_of_each_alone(model, openings):
    first, second = openings[1].tokens, openings[3].tokens
    tokens = np.concatenate([first, second])
    positions = np.concatenate([np.arange(len(first)), np.arange(len(second))]).astype(np.int32)
    sequences = np.repeat([1, 0], [len(first), len(second)]).astype(np.int32)
    wanted = np.zeros(len(tokens), np.bool_)
    wanted[[len(first) - 1, len(tokens) - 1]] = True
    options = SessionOptions(n_ctx=64, n_sequences=2, n_outputs=2, n_threads=1)
    with Session(model, options) as session:
        together = session.decode_tokens(tokens, positions, sequences, wanted).copy()
        for row, alone in zip(together, (first, second), strict=True):
            session.forget(0)
            (logits,) = session.decode(alone[None], 0, slice(-1, None))
            np.testing.assert_allclose(row, logits[0], atol=2e-2)


def test_tokens_that_do_not_fit_a_session_are_refused(model):
    token, no, yes = np.array([5], np.int32), np.zeros(1, np.bool_), np.ones(1, np.bool_)
    with Session(model, SessionOptions(n_ctx=64, n_sequences=2, n_outputs=2, n_threads=1)) as session:
        for tokens, position, sequence, wanted in [
            (token, 64, 0, yes),
            (token, -1, 0, yes),
            (token, 0, 2, yes),
            (token, 0, -1, no),
            (token * 2048, 0, 0, yes),
            (np.full(3, 5, np.int32), 0, 0, np.ones(3, np.bool_)),  # more logits than reserved
        ]:
            places = np.full((2, len(tokens)), [[position], [sequence]], np.int32)
            with pytest.raises(RunError):
                session.decode_tokens(tokens, places[0], places[1], wanted)
