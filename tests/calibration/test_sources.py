"""What a calibration runs over: texts, chats, directories, the built-in corpus; how each is framed and weighted."""

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import EXAMPLE

from gemma4_quant.calibration.sources import (
    BUILT_IN,
    Cutting,
    TextSource,
    corpus_chunks,
    document_chunks,
    joined,
    user_chunks,
)
from gemma4_quant.errors import InputError, TextError
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.text import chunk_text
from gemma4_quant.texts.documents import read_documents
from gemma4_quant.texts.framing import Framing

TEXT, CHATS = EXAMPLE / "calibration.txt", EXAMPLE / "calibration_chat.jsonl"
CUTTING = Cutting(n_ctx=64)


@pytest.fixture(scope="module")
def model(example_bf16):
    with LoadedModel(example_bf16) as loaded:
        yield loaded


TURN = next(
    token["id"]
    for token in json.loads((EXAMPLE / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    if token["content"] == "<|turn>"
)


@pytest.fixture
def chats(tmp_path) -> Path:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Question {i}: say it again"},
                {"role": "assistant", "content": word},
            ]
        }
        for i, word in enumerate(["In the beginning " * 12, "And it came to pass " * 12, "a fool, noun " * 12])
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_a_plain_text_is_cut_as_llama_imatrix_cuts_it(model):
    chunks = user_chunks(model, [TextSource(TEXT)], CUTTING)
    np.testing.assert_array_equal(chunks.tokens, chunk_text(model, TEXT, 64).tokens)
    assert (chunks.datasets, chunks.framings) == ((str(TEXT),), (Framing.RAW,))


def test_a_plain_text_is_the_models_own_turn_when_asked(model):
    chunks = user_chunks(model, [TextSource(TEXT)], Cutting(64, Framing.TURN))
    assert chunks.framings == (Framing.TURN,)
    assert TURN in chunks.tokens[0]


def test_chats_are_turns_unless_raw_is_asked_for(model, chats):
    framed = user_chunks(model, [TextSource(chats)], CUTTING)
    raw = user_chunks(model, [TextSource(chats)], Cutting(64, Framing.RAW))
    assert (framed.framings, raw.framings) == ((Framing.TURN,), (Framing.RAW,))
    assert TURN in framed.tokens
    assert TURN not in raw.tokens


def test_a_directory_gives_its_texts_raw_and_its_chats_as_turns(model, chats):
    text = chats.parent / "text.txt"
    text.write_text(TEXT.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    both = user_chunks(model, [TextSource(chats.parent)], CUTTING)
    apart = [user_chunks(model, [TextSource(path)], CUTTING) for path in (chats, text)]
    assert set(both.framings) == {Framing.RAW, Framing.TURN}
    rows = {row.tobytes() for row in both.tokens}
    assert rows == {row.tobytes() for part in apart for row in part.tokens}
    assert both.datasets == (str(chats.parent),)


def test_weights_say_how_often_chunks_count(model, chats):
    sources = [TextSource(TEXT), TextSource(chats, 3)]
    chunks = user_chunks(model, sources, CUTTING)
    once = user_chunks(model, sources[1:2], CUTTING)
    assert chunks.datasets == (str(TEXT), f"{chats}=3")
    first = once.tokens[0]
    assert (chunks.tokens == first).all(axis=1).sum() == 3
    assert len(chunks.tokens) == len(chunk_text(model, TEXT, 64).tokens) + len(once.tokens)
    with pytest.raises(InputError, match="weight of -1"):
        user_chunks(model, [TextSource(TEXT, -1)], CUTTING)


def test_the_built_in_corpus_is_framed_as_turns_and_named(model):
    chunks = corpus_chunks(model, Cutting(512))
    assert chunks.framings == (Framing.TURN,)
    assert chunks.datasets == (f"{BUILT_IN}, turn",)
    assert len(chunks.tokens) > 50
    raw = corpus_chunks(model, Cutting(512, Framing.RAW))
    assert raw.framings == (Framing.RAW,)
    assert not np.array_equal(chunks.tokens[:20], raw.tokens[:20])


def test_kinds_of_sources_are_mixed_evenly(model, chats):
    parts = [document_chunks(model, read_documents(path), CUTTING, path.name) for path in (chats, TEXT)]
    both = joined(parts)
    assert both.datasets == ("chats.jsonl", "calibration.txt")
    assert len(both.tokens) == sum(len(part.tokens) for part in parts)
    assert joined(parts[:1]) is parts[0]


def test_what_cannot_be_read_is_named_with_its_line(model, chats):
    chats.write_text(chats.read_text(encoding="utf-8") + '\n{"messages": [{"content": "x"}]}\n', encoding="utf-8")
    with pytest.raises(TextError, match=r"chats\.jsonl:4: message 1 has no `role`"):
        user_chunks(model, [TextSource(chats)], CUTTING)
    short = chats.parent / "short.txt"
    short.write_text("In the beginning", encoding="utf-8")
    with pytest.raises(TextError, match=r"short\.txt has \d+ tokens, but a context of 64 needs at least 128"):
        user_chunks(model, [TextSource(TEXT), TextSource(short)], CUTTING)
