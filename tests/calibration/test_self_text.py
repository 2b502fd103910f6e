"""Text that a model writes itself: what it is made of, that it is the same for a seed, kept, and taken up again."""

import json
from dataclasses import replace

import numpy as np
import pytest
from gguf_editing import rewrite
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.calibration import self_text
from gemma4_quant.calibration.prompts import Prompt, PromptKind
from gemma4_quant.calibration.repetition import LEAST_REPEATED, LONGEST_PERIOD, without_loop
from gemma4_quant.calibration.self_text import SelfTextOptions, self_documents, write_self_text
from gemma4_quant.errors import InputError, OutputError, RunError
from gemma4_quant.metadata import string
from gemma4_quant.runner.sampling import SamplingOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.texts.documents import Chat, Transcript, read_documents
from gemma4_quant.texts.framing import Framing, frame_documents
from gemma4_quant.writing.destination import journal_of, partial_of

TOOL = {"type": "function", "function": {"name": "find"}}
PROMPTS = tuple(
    Prompt(f"p{i}", PromptKind.LANGUAGE, "en", ({"role": "user", "content": text},), thinking=i == 1, tools=tools)
    for i, (text, tools) in enumerate((("Recite a passage.", ()), ("Write some code.", ()), ("Go on.", (TOOL,))))
)
OPTIONS = SelfTextOptions(
    n_tokens=700, free_share=0.25, sampling=SamplingOptions(n_tokens=48, seed=5), n_sequences=4, n_threads=1
)


@pytest.fixture(scope="module")
def model(example_bf16):
    with LoadedModel(example_bf16) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def documents(model, tmp_path_factory):
    """The text of OPTIONS, written into a file."""
    return write_self_text(tmp_path_factory.mktemp("self") / "self.jsonl", model, OPTIONS, prompts=PROMPTS)


class KilledError(Exception):
    """What a progress bar raises where a run is to be killed."""


class Killing:
    """Progress that ends the run after so many tokens."""

    def __init__(self, n_tokens):
        self.left = n_tokens

    def start(self, label, total, unit):
        assert (label, total, unit) == ("write", OPTIONS.n_tokens, "token")

    def advance(self, n):
        self.left -= n
        if self.left < 0:
            raise KilledError

    def finish(self):
        pass


def test_it_answers_prompts_in_turn_and_writes_freely_in_between(documents):
    free = [document for document in documents if isinstance(document.content, Transcript)]
    answered = [document.content for document in documents if isinstance(document.content, Chat)]
    assert len(free) == pytest.approx(len(documents) / 4, abs=2)
    questions = {prompt.messages[0]["content"]: prompt for prompt in PROMPTS}
    assert {chat.messages[0]["content"] for chat in answered} == set(questions)
    for chat in answered:
        prompt = questions[chat.messages[0]["content"]]
        assert (chat.tools, chat.thinking) == (prompt.tools, prompt.thinking)
        assert chat.messages[1]["role"] == "assistant"
        assert chat.messages[1]["content"].strip()


def test_there_are_as_many_tokens_as_asked_for_and_not_many_more(model, documents):
    framed = frame_documents(model, documents, Framing.TURN)
    n_tokens = sum(len(document.tokens) for document in framed)
    assert 0.9 * OPTIONS.n_tokens < n_tokens < OPTIONS.n_tokens + 4 * 100  # spelling joins some tokens
    assert all(document.is_answer.any() for document in framed)


def test_a_seed_gives_the_same_text_with_or_without_a_file(model, documents):
    again = self_documents(model, OPTIONS, prompts=PROMPTS)
    assert [document.content for document in again] == [document.content for document in documents]
    assert {document.name for document in again} == {"p0", "p1", "p2", "free"}
    other = self_documents(model, replace(OPTIONS, sampling=SamplingOptions(48, seed=6)), prompts=PROMPTS)
    assert [document.content for document in other] != [document.content for document in documents]


def test_a_text_that_is_there_is_read_and_another_overwritten(model, tmp_path, monkeypatch):
    path = tmp_path / "self.jsonl"
    options = replace(OPTIONS, n_tokens=150)
    written = write_self_text(path, model, options, prompts=PROMPTS)
    assert written == read_documents(path)
    assert sorted(tmp_path.iterdir()) == [path]
    other = write_self_text(path, model, replace(options, free_share=1.0), prompts=PROMPTS)
    assert all(isinstance(document.content, Transcript) for document in other)
    monkeypatch.setattr(self_text, "generate", None)  # so that writing again would fail
    assert write_self_text(path, model, replace(options, free_share=1.0, n_threads=2), prompts=PROMPTS) == other


@pytest.mark.parametrize("n_tokens", [30, 350, 600])
def test_a_run_that_was_killed_goes_on_to_the_same_text(model, documents, tmp_path, n_tokens):
    path = tmp_path / "self.jsonl"
    with pytest.raises(KilledError):
        write_self_text(path, model, OPTIONS, prompts=PROMPTS, progress=Killing(n_tokens))
    assert not path.exists()
    kept = partial_of(path).read_bytes() if partial_of(path).exists() else b""
    assert bool(kept) == (n_tokens > 300)
    partial_of(path).write_bytes(kept + b'{"half a li')  # killed while it wrote the next part
    assert write_self_text(path, model, OPTIONS, prompts=PROMPTS) == documents
    assert path.read_bytes().startswith(kept)
    assert sorted(tmp_path.iterdir()) == [path]


def test_what_another_run_left_is_not_taken_up(model, tmp_path):
    path = tmp_path / "self.jsonl"
    with pytest.raises(KilledError):
        write_self_text(path, model, OPTIONS, prompts=PROMPTS, progress=Killing(350))
    options = replace(OPTIONS, n_tokens=150, free_share=0.5)
    expected = self_documents(model, options, prompts=PROMPTS)
    for damage in (None, "{", "[]", '{"run": "x"}', '{"run": 1, "n_bytes": "many"}'):
        if damage is not None:
            path.unlink()
            journal_of(path).write_text(damage, encoding="utf-8")
        found = write_self_text(path, model, options, prompts=PROMPTS)
        assert [document.content for document in found] == [document.content for document in expected]


def test_a_model_without_a_template_goes_on_from_words(example_bf16, tmp_path):
    base = rewrite(example_bf16, tmp_path / "base.gguf", values={"tokenizer.chat_template": None})
    with LoadedModel(base) as model:
        found = self_documents(model, replace(OPTIONS, n_tokens=300), prompts=PROMPTS)
        assert all(isinstance(document.content, Transcript) for document in found)
        words = {prompt.name: prompt.messages[0]["content"] for prompt in PROMPTS}
        asked = [document for document in found if document.name != "free"]
        assert asked
        assert all(document.content.text.startswith(words[document.name] + "\n\n") for document in asked)
        assert all(document.is_answer.any() for document in frame_documents(model, found, Framing.RAW))


def test_a_template_that_fails_is_left_alone_with_a_warning(example_bf16, tmp_path, caplog):
    broken = {"tokenizer.chat_template": string("{{ raise_exception('never') }}")}
    with LoadedModel(rewrite(example_bf16, tmp_path / "broken.gguf", values=broken)) as model:
        found = self_documents(model, replace(OPTIONS, n_tokens=150), prompts=PROMPTS)
    assert all(isinstance(document.content, Transcript) for document in found)
    assert sum("never" in record.getMessage() for record in caplog.records) == 1


def test_a_model_that_answers_nothing_goes_on_without_its_template(model, monkeypatch, caplog):
    """Answers are cut to nothing here, free text is left."""
    generate = self_text.generate

    def silent(model, openings, *args, **kwargs):
        answers = generate(model, openings, *args, **kwargs)
        return [answer[: 0 if start.stops_at_turn else None] for start, answer in zip(openings, answers, strict=True)]

    monkeypatch.setattr(self_text, "generate", silent)
    found = self_documents(model, replace(OPTIONS, n_tokens=800), prompts=PROMPTS)
    assert all(isinstance(document.content, Transcript) for document in found)
    assert any(document.name.startswith("p") for document in found)
    (record,) = [record for record in caplog.records if "answered only" in record.getMessage()]
    assert "0 of" in record.getMessage()


def test_a_model_that_writes_nothing_at_all_is_an_error(model, monkeypatch):
    def nothing(_model, openings, *_args, **_kwargs):
        return [np.full(200, 7, np.int32) for _ in openings]  # one token again and again

    monkeypatch.setattr(self_text, "generate", nothing)
    with pytest.raises(RunError, match="writes nothing that can be kept"):
        self_documents(model, OPTIONS, prompts=PROMPTS)


def test_thoughts_are_kept_beside_the_answer(model, monkeypatch):
    said = "<|channel>thought\nWhat would the king say to this?\n<channel|>And he said unto them, Go ye up."
    monkeypatch.setattr(
        self_text,
        "generate",
        lambda model, openings, *_a, **_k: [model.tokenise(said, add_special=False)] * len(openings),
    )
    found = self_documents(model, replace(OPTIONS, free_share=0.0), prompts=PROMPTS[1:2])
    assert found[0].content.messages[1] == {
        "role": "assistant",
        "reasoning_content": "What would the king say to this?\n",
        "content": "And he said unto them, Go ye up.",
    }


def test_a_prompt_that_leaves_no_room_is_left_out(model):
    long = replace(PROMPTS[0], name="long", messages=({"role": "user", "content": "And the king. " * 2000},))
    found = self_documents(model, replace(OPTIONS, n_tokens=100), prompts=(long,))
    assert {document.name for document in found} == {"free"}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"n_tokens": 0}, "0 tokens"),
        ({"free_share": 1.5}, "1.5"),
        ({"free_share": float("nan")}, "nan"),
        ({"n_sequences": 0}, "side by side"),
        ({"sampling": SamplingOptions(top_p=0)}, "top-p"),
    ],
)
def test_options_that_mean_nothing_are_refused(model, wrong, reason):
    with pytest.raises(InputError, match=reason):
        self_documents(model, replace(OPTIONS, **wrong), prompts=PROMPTS)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(self_text, "generate", None)
    for path in (tmp_path / "no" / "self.jsonl", model.path):
        with pytest.raises(OutputError):
            write_self_text(path, model, OPTIONS, prompts=PROMPTS)


def test_the_lines_say_what_they_were_written_for(model, tmp_path):
    path = tmp_path / "self.jsonl"
    write_self_text(path, model, replace(OPTIONS, n_tokens=100), prompts=PROMPTS)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {line["name"] for line in lines} <= {"p0", "p1", "p2", "free"}
    assert len({line["run"] for line in lines}) == 1


@given(
    start=st.lists(st.integers(10, 10_000), max_size=80, unique=True),
    period=st.integers(1, LONGEST_PERIOD),
    extra=st.integers(0, 40),
)
def test_a_loop_is_cut_after_its_first_round(start, period, extra):
    loop = np.arange(20_000, 20_000 + period)
    rounds = np.resize(loop, period + LEAST_REPEATED + extra)
    text = np.concatenate([start, rounds]).astype(np.int32)
    np.testing.assert_array_equal(without_loop(text), text[: len(start) + period])


@given(st.integers(0, 400))
def test_a_text_without_a_loop_stays_whole(n_tokens):
    text = np.arange(n_tokens, dtype=np.int32)
    np.testing.assert_array_equal(without_loop(text), text)
