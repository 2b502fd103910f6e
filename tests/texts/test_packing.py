"""Chunks for calibration and windows for measurement, against what they are cut from."""

import numpy as np
import pytest
from checkpoints import EXAMPLE
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.errors import InputError, TextError
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.text import chunk_text
from gemma4_quant.texts.documents import Document, read_documents
from gemma4_quant.texts.framing import FramedDocument, Framing, frame_documents
from gemma4_quant.texts.packing import mix, pack, windows


@pytest.fixture(scope="module")
def model(example_bf16):
    with LoadedModel(example_bf16) as loaded:
        yield loaded


def test_a_raw_text_gives_the_chunks_of_llama_imatrix(model):
    path = EXAMPLE / "evaluation.txt"
    framed = frame_documents(model, read_documents(path), Framing.RAW)
    ours, theirs = pack(model, framed, Framing.RAW, 256, source="x"), chunk_text(model, path, 256)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert ours.n_text_tokens == theirs.n_text_tokens
    np.testing.assert_array_equal(pack(model, framed, Framing.RAW, 256, 3, source="x").tokens, theirs.tokens[:3])


def test_framed_documents_follow_one_another_in_chunks_that_begin_with_bos(model):
    framed = frame_documents(model, read_documents(EXAMPLE / "evaluation_chat.jsonl")[:9], Framing.TURN)
    stream = np.concatenate([document.tokens for document in framed])
    chunks = pack(model, framed, Framing.TURN, 100, source="x")
    assert chunks.n_text_tokens == len(stream)
    assert (chunks.tokens[:, 0] == model.bos).all()
    np.testing.assert_array_equal(chunks.tokens[:, 1:], stream[: len(chunks.tokens) * 100].reshape(-1, 100)[:, 1:])
    assert len(stream) - chunks.tokens.size < 100


def test_too_few_tokens_are_refused_with_what_there_is(model):
    framed = frame_documents(model, [Document("x", "In the beginning")], Framing.TURN)
    n_tokens = len(framed[0].tokens)
    assert len(pack(model, framed, Framing.TURN, n_tokens, source="x").tokens) == 1
    with pytest.raises(TextError, match=rf"words has {n_tokens} tokens.*-c {n_tokens}"):
        pack(model, framed, Framing.TURN, n_tokens + 1, source="words")
    with pytest.raises(TextError, match="has 0 tokens"):
        pack(model, [], Framing.TURN, 16, source="words")


def test_sources_are_mixed_by_their_weights_and_evenly():
    parts = [np.full((n, 2), i, np.int32) for i, n in enumerate((40, 10, 30))]
    mixed = mix(parts, [0.5, 2, 1])[:, 0]
    assert np.bincount(mixed).tolist() == [20, 20, 30]
    for n in range(7, 71, 7):  # any beginning has the proportions of the whole
        np.testing.assert_allclose(np.bincount(mixed[:n], minlength=3), np.array([20, 20, 30]) * n / 70, atol=1.5)


def test_one_source_of_weight_one_stays_as_it_is():
    chunks = np.arange(12, dtype=np.int32).reshape(4, 3)
    np.testing.assert_array_equal(mix([chunks], [1.0]), chunks)


@given(st.integers(1, 50), st.floats(0.05, 4))
def test_a_weight_says_how_often_a_source_is_taken(n_chunks, weight):
    mixed = mix([np.arange(n_chunks, dtype=np.int32)[:, None]], [weight])
    assert n_chunks * weight - 1e-9 <= len(mixed) < n_chunks * weight + 1 + 1e-9
    counts = np.bincount(mixed[:, 0], minlength=n_chunks)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(InputError, match="weight"):
        mix([np.zeros((1, 2), np.int32)], [weight])


@given(is_answer=st.lists(st.booleans(), min_size=1, max_size=120), n_ctx=st.integers(2, 40))
def test_each_word_is_scored_once_with_at_least_half_a_context_before_it(model, is_answer, n_ctx):
    tokens = np.arange(100, 100 + len(is_answer), dtype=np.int32)
    document = FramedDocument("x", tokens, np.array(is_answer))
    scored = []
    for window in windows(model, [document], n_ctx):
        assert window.document == 0
        assert 0 < len(window.tokens) <= n_ctx
        assert window.is_scored[-1]
        assert not window.is_scored[0]
        is_first = window.tokens[0] == 100
        assert is_first or window.tokens[0] == model.bos
        np.testing.assert_array_equal(np.diff(window.tokens[1:]), 1)
        at = np.flatnonzero(window.is_scored)
        if not is_first:
            assert at[0] >= n_ctx // 2
        scored += window.tokens[at].tolist()
    assert scored == [100 + i for i, said in enumerate(is_answer) if said and i > 0]


def test_a_document_that_fits_is_one_window(model):
    document = FramedDocument("x", np.arange(5, dtype=np.int32), np.array([False, False, True, True, False]))
    silent = FramedDocument("y", np.arange(5, dtype=np.int32), np.zeros(5, np.bool_))
    (window,) = windows(model, [silent, document], 16)
    assert window.document == 1
    assert window.tokens.tolist() == [0, 1, 2, 3]
    assert window.n_scored == 2
