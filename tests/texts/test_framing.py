"""Framing against the checkpoint's own tokenizer and texts written out by hand: which tokens, and which are words."""

import json

import numpy as np
import pytest
from checkpoints import EXAMPLE
from gguf_editing import rewrite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from texts.templates import GEMMA_LIKE, HOSTILE, REFUSING
from tokenizers import Tokenizer

from gemma4_quant.errors import ChatTemplateError, TextError
from gemma4_quant.metadata import string
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.texts.documents import Chat, Document, Transcript, read_documents
from gemma4_quant.texts.framing import Framer, Framing, chosen_framing, frame, frame_documents
from gemma4_quant.texts.packing import windows

TEMPLATE = "tokenizer.chat_template"
TOKENIZER = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))

QUESTION = {"role": "user", "content": "Who was it?"}
ANSWER = {"role": "assistant", "content": " He was of Judah.\n"}
CALL = {
    "role": "assistant",
    "tool_calls": [{"function": {"name": "find", "arguments": {"who": "the king", "most": 3, "in": ["a"]}}}],
}
RESULT = {"role": "tool", "name": "find", "content": "David"}
TOOL = {"type": "function", "function": {"name": "find"}}

USER_TURN = "<|turn>user\nWho was it?<turn|>\n"
SILENT = "<|channel>thought\n<channel|>"
REQUEST = "<|turn>user\nWrite a text.<turn|>\n"


@pytest.fixture(scope="module")
def model(example_bf16):
    with LoadedModel(example_bf16) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def make_model(example_bf16, tmp_path_factory):
    """Load the example with another template, or none."""
    opened = []

    def load(template):
        path = tmp_path_factory.mktemp("templates") / "model.gguf"
        rewrite(example_bf16, path, values={TEMPLATE: None if template is None else string(template)})
        opened.append(LoadedModel(path))
        return opened[-1]

    yield load
    for loaded in opened:
        loaded.close()


@pytest.fixture(scope="module")
def gemma_like(make_model):
    return make_model(GEMMA_LIKE)


def words(framed):
    """Return runs of the model's words, as the checkpoint's tokenizer spells them."""
    runs, current = [], []
    for token, is_answer in zip([*framed.tokens.tolist(), 0], [*framed.is_answer.tolist(), False], strict=True):
        if is_answer:
            current.append(token)
        elif current:
            runs.append(TOKENIZER.decode(current, skip_special_tokens=False))
            current = []
    return runs


def expected_tokens(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def test_chats_of_the_example_have_the_tokens_of_its_tokenizer(model):
    documents = read_documents(EXAMPLE / "evaluation_chat.jsonl")[:40]
    for document, framed in zip(documents, frame_documents(model, documents, Framing.TURN), strict=True):
        question, answer = (message["content"].strip() for message in document.content.messages)
        text = f"<bos><|turn>user\n{question}<turn|>\n<|turn>model\n{answer}<turn|>\n"
        assert framed.tokens.tolist() == expected_tokens(text)
        assert words(framed) == [answer]


@pytest.mark.parametrize(
    ("chat", "text", "said"),
    [
        (
            Chat(({"role": "system", "content": "Be brief."}, QUESTION, ANSWER)),
            f"<|turn>system\nBe brief.<turn|>\n{USER_TURN}<|turn>model\n{SILENT}He was of Judah.<turn|>\n",
            ["He was of Judah."],
        ),
        (
            Chat((QUESTION, ANSWER, QUESTION, {**ANSWER, "content": "David"})),
            f"{USER_TURN}<|turn>model\nHe was of Judah.<turn|>\n{USER_TURN}<|turn>model\n{SILENT}David<turn|>\n",
            ["David"],
        ),
        (
            Chat((QUESTION, {**ANSWER, "reasoning_content": "They ask."}), thinking=True),
            f"<|turn>system\n<|think|>\n<turn|>\n{USER_TURN}<|turn>model\n"
            "<|channel>thought\nThey ask.\n<channel|>He was of Judah.<turn|>\n",
            ["They ask.", "He was of Judah."],
        ),
        (
            Chat((QUESTION, {**ANSWER, "content": "<|channel>thought\nThey\n<channel|>David"}), thinking=True),
            f"<|turn>system\n<|think|>\n<turn|>\n{USER_TURN}<|turn>model\n"
            "<|channel>thought\nThey\n<channel|>David<turn|>\n",
            ["They\n", "David"],
        ),
        (
            Chat((QUESTION, {**ANSWER, "reasoning": "They ask."}), thinking=False),
            f"{USER_TURN}<|turn>model\n{SILENT}He was of Judah.<turn|>\n",
            ["He was of Judah."],
        ),
        (
            Chat((QUESTION, CALL), (TOOL,)),
            f"<|turn>system\n<|tool>declaration:find<tool|><turn|>\n{USER_TURN}<|turn>model\n{SILENT}"
            '<|tool_call>call:find{in:["a"],most:3,who:<|"|>the king<|"|>}<tool_call|>',
            ["find", "a", "the king"],
        ),
        (
            Chat((QUESTION, CALL, RESULT, ANSWER), (TOOL,)),
            f"<|turn>system\n<|tool>declaration:find<tool|><turn|>\n{USER_TURN}<|turn>model\n"
            '<|tool_call>call:find{in:["a"],most:3,who:<|"|>the king<|"|>}<tool_call|>'
            '<|tool_response>response:find{value:<|"|>David<|"|>}<tool_response|>He was of Judah.<turn|>\n',
            ["He was of Judah."],
        ),
        (
            Chat((QUESTION, {"role": "assistant", "content": [{"type": "text", "text": t} for t in ("Sa", "ul")]})),
            f"{USER_TURN}<|turn>model\n{SILENT}Saul<turn|>\n",
            ["Saul"],
        ),
        (Chat((QUESTION,)), USER_TURN, []),
        (Chat((ANSWER,)), "<|turn>model\nHe was of Judah.<turn|>\n", ["He was of Judah."]),
    ],
    ids=["system", "turns", "thoughts", "thoughts inside", "no thinking", "call", "result", "parts", "open", "alone"],
)
def test_a_chat_is_framed_as_the_model_meets_it(gemma_like, chat, text, said):
    framed = frame(gemma_like, Document("chat", chat), Framing.TURN)
    assert framed.tokens.tolist() == expected_tokens("<bos>" + text)
    found = words(framed)
    if said[:1] == ["find"]:  # of a call, words that share a token with the template's signs are left out
        assert "the king" in found
        assert set(found) <= set(said)
    else:
        assert found == said


def test_arguments_written_as_a_text_are_read_as_the_object_they_are(gemma_like):
    function = CALL["tool_calls"][0]["function"]
    as_text = {**CALL, "tool_calls": [{"function": {**function, "arguments": json.dumps(function["arguments"])}}]}
    one, other = (frame(gemma_like, Document("x", Chat((QUESTION, call))), Framing.TURN) for call in (CALL, as_text))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.is_answer, other.is_answer)


def test_markers_in_an_answer_are_no_words(gemma_like):
    chat = Chat((QUESTION, {**ANSWER, "content": 'say <turn|> and <|"|> and <|channel> now'}))
    framed = frame(gemma_like, Document("x", chat), Framing.TURN)
    assert words(framed) == ["say ", " and ", " and ", " now"]


def test_the_users_words_are_not_taken_for_the_models(gemma_like):
    same = "He was of Judah."
    chat = Chat(({"role": "system", "content": same}, {"role": "user", "content": same}, {**ANSWER, "content": same}))
    framed = frame(gemma_like, Document("x", chat), Framing.TURN)
    assert words(framed) == [same]
    assert framed.is_answer[len(framed.tokens) // 2 :].sum() == framed.is_answer.sum()


@pytest.mark.parametrize(("template", "opening"), [(None, ""), (GEMMA_LIKE, SILENT)])
def test_plain_text_is_the_models_own_turn(model, gemma_like, template, opening):
    text = "And the king said <turn|> unto him\n    Go."
    framed = frame(model if template is None else gemma_like, Document("x", text), Framing.TURN)
    before = expected_tokens(f"<bos>{REQUEST}<|turn>model\n{opening}")
    after = expected_tokens("<turn|>\n")
    assert framed.tokens[: len(before)].tolist() == before
    assert framed.tokens[-len(after) :].tolist() == after
    assert words(framed) == [text]
    assert framed.is_answer.sum() == len(framed.tokens) - len(before) - len(after)


def test_special_tokens_in_plain_text_are_read_as_such_on_request(model):
    text = "go <turn|> on"
    for framing, around in (
        (Framing.TURN, (f"<bos>{REQUEST}<|turn>model\n", "<turn|>\n")),
        (Framing.RAW, ("<bos>", "")),
    ):
        framed = frame(model, Document("x", text), framing, parse_special=True)
        assert framed.tokens.tolist() == expected_tokens(text.join(around))


def test_a_long_text_becomes_several_turns_cut_between_lines(model):
    lines = (EXAMPLE / "evaluation.txt").read_text(encoding="utf-8")[:6000]
    framed = frame_documents(model, [Document("long", lines)], Framing.TURN, n_ctx=128)
    assert [piece.name for piece in framed] == [f"long#{i}" for i in range(1, len(framed) + 1)]
    assert max(len(piece.tokens) for piece in framed) <= 128
    before, after = expected_tokens(f"<bos>{REQUEST}<|turn>model\n"), expected_tokens("<turn|>\n")
    said = []
    for piece in framed:
        assert piece.tokens[: len(before)].tolist() == before
        said.append("".join(words(piece)))
        assert piece.is_answer.sum() == len(piece.tokens) - len(before) - len(after)
        assert piece.tokens.tolist() == before + expected_tokens(said[-1]) + after
    assert "".join(said).replace("\n", "") == lines.replace("\n", "")


def test_a_context_without_room_for_a_turn_is_refused(model):
    with pytest.raises(TextError, match=r"frame takes \d+ tokens"):
        frame_documents(model, [Document("x", "words")], Framing.TURN, n_ctx=8)


def test_a_transcript_is_read_as_it_is_whatever_the_framing(make_model, model):
    text = "<|turn>user\nWhy?<turn|>\n<|turn>model\nSo that.<turn|>\n"
    for loaded in (model, make_model(None)):
        for framing in Framing:
            framed = frame(loaded, Document("x", Transcript(text)), framing)
            assert framed.tokens.tolist() == expected_tokens("<bos>" + text)
            assert words(framed) == ["Why?", "So that."]


def test_raw_text_is_what_llama_cpp_reads(model):
    framed = frame(model, Document("x", "In the <turn|> beginning"), Framing.RAW)
    np.testing.assert_array_equal(framed.tokens, model.tokenise("In the <turn|> beginning"))
    assert framed.is_answer.tolist() == [False] + [True] * (len(framed.tokens) - 1)


def test_a_raw_chat_is_its_words(model):
    framed = frame(model, Document("x", Chat((QUESTION, ANSWER))), Framing.RAW)
    np.testing.assert_array_equal(framed.tokens, model.tokenise("Who was it?\n\n He was of Judah.\n"))


def test_without_a_template_raw_is_chosen_with_a_warning_and_turns_are_refused(make_model, model, caplog):
    base = make_model(None)
    assert chosen_framing(model, None) is Framing.TURN
    assert not caplog.records
    assert chosen_framing(base, None) is Framing.RAW
    assert "no chat template" in caplog.text
    assert chosen_framing(base, Framing.TURN) is Framing.TURN
    with pytest.raises(ChatTemplateError, match=r"no chat template.*--raw"):
        frame(base, Document("x", Chat((QUESTION,))), Framing.TURN)


def test_a_refusal_names_the_document_and_has_the_templates_words(make_model):
    with pytest.raises(ChatTemplateError, match=r"chats\.jsonl:7: .*roles must alternate") as caught:
        frame(make_model(REFUSING), Document("chats.jsonl:7", Chat((QUESTION, ANSWER, QUESTION))), Framing.TURN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", [HOSTILE, "{{ 'nothing' }}", "{% if"])
def test_a_template_that_frames_nothing_is_refused(make_model, template):
    with pytest.raises(ChatTemplateError, match=r"model\.gguf: .*--raw"):
        frame(make_model(template), Document("x", "words"), Framing.TURN)


def test_half_a_surrogate_pair_is_refused_by_name(model):
    for content in ("\ud83d", Chat(({"role": "user", "content": "\ud83d"},)), Transcript("\ude00")):
        with pytest.raises(TextError, match=r"odd\.txt holds half a surrogate pair"):
            frame(model, Document("odd.txt", content), Framing.TURN)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=st.text(min_size=1, max_size=60), prompt=st.text(max_size=20))
def test_any_answer_is_framed_as_its_tokenizer_would(framer, answer, prompt):
    """Markers cannot come by chance, so all tokens inside of the answer are words."""
    chat = Chat(({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}))
    (framed,) = framer.frame(Document("x", chat))
    text = f"<bos><|turn>user\n{prompt.strip()}<turn|>\n<|turn>model\n{SILENT}{answer.strip()}<turn|>\n"
    assert TOKENIZER.decode(framed.tokens.tolist(), skip_special_tokens=False) == text.replace("▁", " ")
    assert "".join(words(framed)) == answer.strip().replace("▁", " ")


@pytest.fixture(scope="module")
def framer(gemma_like):
    with Framer(gemma_like, Framing.TURN) as opened:
        yield opened


def mean_nll(model, documents, n_ctx=320):
    """Return the mean negative log-likelihood of the words of documents, in nats."""
    found = []
    with Session(model, SessionOptions(n_ctx=n_ctx, n_batch=n_ctx, n_outputs=n_ctx, n_threads=1)) as session:
        for window in windows(model, documents, n_ctx):
            session.clear()
            logits = session.decode(window.tokens[None, :-1], 0, slice(None))[0].astype(np.float64)
            nll = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), window.tokens[1:]]
            found.append(nll[window.is_scored[1:]])
    return float(np.concatenate(found).mean())


def test_the_example_predicts_its_own_answers_better_in_their_frame(model):
    chats = read_documents(EXAMPLE / "evaluation_chat.jsonl")[:24]
    answers = [Document(chat.name, chat.content.messages[-1]["content"].strip()) for chat in chats]
    framed = frame_documents(model, chats, Framing.TURN)
    raw = frame_documents(model, answers, Framing.RAW)
    assert sum(document.is_answer.sum() for document in raw) == sum(document.is_answer.sum() for document in framed)
    assert mean_nll(model, framed) < mean_nll(model, raw) - 0.02
