"""Texts cut into windows: raw as llama.cpp's tools cut them, framed so that only the model's own words count."""

import numpy as np
import pytest
from checkpoints import EXAMPLE

from gemma4_quant.errors import InputError, TextError
from gemma4_quant.measuring.scored_text import Domain, WindowOptions, scored_text
from gemma4_quant.measuring.text_choice import named_domains
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.text import read_text
from gemma4_quant.texts.documents import Document, read_documents
from gemma4_quant.texts.framing import Framing, frame_documents

TEXT = Domain("text", "evaluation.txt", read_documents(EXAMPLE / "evaluation.txt"))
CHATS = Domain("chats", "evaluation_chat.jsonl", read_documents(EXAMPLE / "evaluation_chat.jsonl"))


@pytest.fixture(scope="module")
def model(example_bf16):
    with LoadedModel(example_bf16) as loaded:
        yield loaded


def cut(model, *domains, framing=Framing.RAW, n_ctx=512, n_chunks=None, stride=None):
    return scored_text(model, domains or (TEXT,), framing, WindowOptions(n_ctx, n_chunks, stride))


def text_domain(text, n=1):
    return Domain("words", "words.txt", tuple(Document(str(i), text) for i in range(n)))


def test_raw_chunks_begin_with_bos_and_score_their_second_half(model):
    text = cut(model, n_ctx=500)
    tokens = model.tokenise(read_text(EXAMPLE / "evaluation.txt"))
    assert len(text.passages) == len(tokens) // 500
    window = text.passages[1].window
    assert window.tokens[0] == model.bos
    np.testing.assert_array_equal(window.tokens[1:], tokens[501:1000])
    np.testing.assert_array_equal(np.flatnonzero(window.is_scored), np.arange(251, 500))
    assert text.n_positions == len(text.passages) * (500 - 1 - 250)
    assert text.positions.min() == 251


def test_strided_windows_follow_each_other_without_bos(model):
    tokens = model.tokenise(read_text(EXAMPLE / "evaluation.txt"))
    text = cut(model, n_ctx=200, stride=64, n_chunks=9)  # 200 + 64 / 2, rounded up to 256
    for number, passage in enumerate(text.passages):
        np.testing.assert_array_equal(passage.window.tokens, tokens[64 * number :][:256])
        np.testing.assert_array_equal(np.flatnonzero(passage.window.is_scored), np.arange(192, 256))
    assert len(text.passages) == 9


def test_framed_chats_score_the_words_of_the_model_alone(model):
    text = cut(model, CHATS, framing=Framing.TURN)
    framed = frame_documents(model, CHATS.documents, Framing.TURN, n_ctx=512)
    expected = sum(int(document.is_answer.sum()) for document in framed)
    assert text.n_positions == expected
    for passage in text.passages:
        document = framed[passage.document]
        kept = len(passage.window.tokens)
        np.testing.assert_array_equal(passage.window.tokens, document.tokens[:kept])
        assert not (passage.window.is_scored & ~document.is_answer[:kept]).any()


def test_domains_and_documents_are_numbered_through(model):
    text = cut(model, CHATS, text_domain("In the beginning was the word. " * 40, 3), framing=Framing.TURN)
    assert [used.domain for used in text.domains] == ["chats", "words"]
    assert [used.n_documents for used in text.domains] == [len(CHATS.documents), 3]
    numbers = [passage.document for passage in text.passages]
    assert numbers == sorted(numbers)
    assert numbers[-1] == len(CHATS.documents) + 2
    assert text.domain_of[text.passage_of].tolist() == sorted(text.domain_of[text.passage_of].tolist())
    assert sum(used.n_positions for used in text.domains) == text.n_positions


def test_raw_documents_of_several_are_scored_whole_but_for_bos(model):
    text = cut(model, text_domain("In the beginning was the word. " * 3, 4))
    assert len(text.passages) == 4
    for passage in text.passages:
        assert passage.window.tokens[0] == model.bos
        assert passage.window.is_scored.sum() == len(passage.window.tokens) - 1


def test_a_digest_tells_texts_apart_and_what_is_scored_of_them(model):
    same = [cut(model, n_chunks=3).digest() for _ in range(2)]
    others = [cut(model, n_chunks=2).digest(), cut(model, n_ctx=256, n_chunks=3).digest()]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 3


def test_a_text_that_is_too_short_names_both_numbers(model):
    short = text_domain("In the beginning was the word. " * 20)
    n_tokens = len(model.tokenise(short.documents[0].content))
    with pytest.raises(TextError, match=f"has {n_tokens} tokens, but a context of 512 needs at least 1024"):
        cut(model, short)
    with pytest.raises(TextError, match=f"has {n_tokens} tokens, .* 512 with a stride of 100 needs at least 1536"):
        cut(model, short, stride=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 1}, "at least 2"),
        ({"n_chunks": 0}, "at least 1"),
        ({"stride": 512}, "does not fit a context of 512"),
        ({"stride": 16, "framing": Framing.TURN}, "are for raw text"),
        ({"stride": 16, "domain": CHATS}, "are for texts of one document"),
    ],
)
def test_senseless_sizes_are_refused(model, options, message):
    domain = options.pop("domain", TEXT)
    with pytest.raises(InputError, match=message):
        cut(model, domain, **options)


def test_domains_of_one_name_are_refused(model):
    with pytest.raises(InputError, match=r"both called 'text'; name them: -f NAME=PATH"):
        cut(model, TEXT, TEXT)
    with pytest.raises(InputError, match="0 domains"):
        scored_text(model, [], Framing.RAW, WindowOptions())


def test_texts_are_named_on_the_command_line(tmp_path):
    (tmp_path / "a.py").write_text("print()\n", encoding="utf-8")
    (tmp_path / "odd=x,y.txt").write_text("text\n", encoding="utf-8")
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n', encoding="utf-8")
    found = named_domains(
        [f"code={tmp_path / 'a.py'},{tmp_path / 'chats.jsonl'}", str(tmp_path / "odd=x,y.txt"), f"all={tmp_path}"]
    )
    assert [domain.name for domain in found] == ["code", "chats.jsonl", "odd=x,y.txt", "all"]
    assert [len(domain.documents) for domain in found] == [1, 1, 1, 3]
    assert found[0].documents[0].content == "print()"
    with pytest.raises(InputError, match="names no domain"):
        named_domains([f"={tmp_path / 'a.py'}"])
    with pytest.raises(TextError, match="cannot read the text"):
        named_domains(["code=missing.py"])
