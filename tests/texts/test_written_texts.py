"""The texts that ship with the package: clean, correct where a machine can tell, and kept apart."""

import json
import re
import sqlite3
import unicodedata
from pathlib import Path

import pytest
from checkpoints import EXAMPLE
from real_vocabulary import facts
from written_texts import chats, collections, fenced, files, passages

from gemma4_quant.calibration import corpus
from gemma4_quant.chat.templates import ChatTemplate, Conversation
from gemma4_quant.texts.documents import Chat, Document
from gemma4_quant.texts.turns import TurnRenderer

TEMPLATES = {"example": (EXAMPLE / "chat_template.jinja").read_text(), "gemma 4": facts()["chat_template"]}

JOINERS = {"\u200c", "\u200d"}
"""Zero-width joiner and non-joiner: letters of Persian and of scripts of India."""


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_a_file_is_clean_utf8_in_nfc(path: Path) -> None:
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n")
    for written in (json.loads(f"[{','.join(text.splitlines())}]"), text) if path.suffix == ".jsonl" else (text,):
        plain = written if isinstance(written, str) else json.dumps(written, ensure_ascii=False)
        assert unicodedata.is_normalized("NFC", plain)
        kinds = {c: unicodedata.category(c) for c in set(plain) - {"\n", "\t"} - JOINERS}
        assert [f"U+{ord(c):04X}" for c, kind in kinds.items() if kind[0] == "C" or kind in {"Zl", "Zp"}] == []


def test_names_are_unique() -> None:
    for documents in collections().values():
        names = [document.name for document in documents]
        assert len(names) == len(set(names))


def test_no_two_documents_begin_alike() -> None:
    beginnings = [_beginning(document) for documents in collections().values() for document in documents]
    assert len(beginnings) == len(set(beginnings))


def _beginning(document: Document) -> str:
    if isinstance(document.content, str):
        return document.content[:60]
    return next(str(message["content"])[:60] for message in document.content.messages if message["role"] == "user")


def test_no_word_mixes_alphabets() -> None:
    """A Latin letter that looks like a Cyrillic one is a slip of the keyboard."""
    for documents in collections().values():
        for document in documents:
            for passage in passages(document):
                for word in re.findall(r"[^\W\d_]+", passage):
                    alphabets = {unicodedata.name(letter).split()[0] for letter in word}
                    assert not ("CYRILLIC" in alphabets and alphabets & {"LATIN", "GREEK"}), (document.name, word)


@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_render(name: str) -> None:
    with ChatTemplate(TEMPLATES[name]) as template:
        for which, chat in chats():
            asks = chat.messages[-1]["role"] != "assistant"
            text = template.render(
                Conversation(
                    chat.messages, chat.tools or None, add_generation_prompt=asks, enable_thinking=chat.thinking
                )
            )
            for message in chat.messages:
                assert message["content"].strip() in text, which


def test_tools_are_declared_called_and_answered_in_gemmas_template() -> None:
    with ChatTemplate(TEMPLATES["gemma 4"]) as template:
        for which, chat in chats():
            if not chat.tools:
                continue
            text = template.render(Conversation(chat.messages, chat.tools, enable_thinking=chat.thinking))
            declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in chat.tools}
            assert set(re.findall(r"<\|tool>declaration:(\w+)", text)) == set(declared), which
            calls = [call["function"] for message in chat.messages for call in message.get("tool_calls", ())]
            assert re.findall(r"<\|tool_call>call:(\w+)", text) == [call["name"] for call in calls], which
            for call in calls:
                parameters = declared[call["name"]]
                assert set(call["arguments"]) <= set(parameters["properties"]), which
                assert set(parameters["required"]) <= set(call["arguments"]), which
                for key, value in call["arguments"].items():
                    assert value in parameters["properties"][key].get("enum", [value]), which


def test_gemmas_template_lets_every_last_answer_count() -> None:
    """What a bench scores: the last message, with the thoughts or the calls that belong to it."""
    source = TEMPLATES["gemma 4"]
    with ChatTemplate(source) as template:
        turns = TurnRenderer(template, source)
        for which, chat in chats():
            last = chat.messages[-1]
            if last["role"] != "assistant":
                continue
            marked = turns.render(chat)
            words = [marked.text[start:stop] for start, stop in marked.spans]
            names = [call["function"]["name"] for call in last.get("tool_calls", ())]
            expected = [last.get("reasoning_content", ""), *names, last["content"].strip()]
            assert [text for text in filter(None, expected) if text not in words] == [], which


def test_every_tool_result_belongs_to_a_call() -> None:
    for which, chat in chats():
        waiting: dict[str, str] = {}
        for message in chat.messages:
            if message["role"] == "tool":
                assert waiting.pop(message["tool_call_id"]) == message["name"], which
                if message["content"].startswith(("{", "[")):
                    json.loads(message["content"])
            else:
                assert waiting == {}, which
                waiting = {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}


def test_thoughts_are_written_where_thinking_is_on() -> None:
    for which, chat in chats():
        thinks = any(message.get("reasoning_content") for message in chat.messages)
        assert chat.thinking or not thinks, which
        if chat.messages[-1]["role"] == "assistant":
            assert thinks or not chat.thinking, which


def test_python_compiles() -> None:
    blocks = [*fenced("python"), *_corpus_code(".py")]
    assert len(blocks) >= 8
    for name, code in blocks:
        compile(code, name, "exec")


def test_json_parses() -> None:
    blocks = list(fenced("json"))
    assert len(blocks) >= 4
    for _, block in blocks:
        json.loads(block)


def test_sql_of_the_corpus_runs() -> None:
    for _, code in _corpus_code(".sql"):
        with sqlite3.connect(":memory:") as database:
            database.executescript(code)
            assert database.execute("SELECT count(*) FROM rides").fetchone() == (5,)


def _corpus_code(suffix: str) -> list[tuple[str, str]]:
    return [(path.name, path.read_text(encoding="utf-8")) for path in sorted(corpus.FOLDER.rglob(f"*{suffix}.txt"))]


def _runs(text: str) -> set[tuple[str, ...]]:
    """Return all runs of 8 words; of scripts that put no blanks between words, all runs of 16 characters."""
    words = [word.strip("\"'.,;:!?()[]{}*`„“”«»…-–—") for word in text.casefold().split()]
    words = [word for word in words if any(map(str.isalnum, word))]
    unspaced = re.findall(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff]", text)
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)} | {
        tuple(unspaced[i : i + 16]) for i in range(len(unspaced) - 15)
    }


def _runs_of(collection: str) -> set[tuple[str, ...]]:
    return {run for document in collections()[collection] for text in passages(document) for run in _runs(text)}


def test_no_text_of_calibration_is_in_the_evaluation() -> None:
    evaluation = _runs_of("evaluation")
    assert len(evaluation) > 5000
    assert evaluation & (_runs_of("corpus") | _runs_of("prompts")) == set()


def test_shared_runs_are_found() -> None:
    assert _runs("Well, one two three four five six seven.") & _runs(
        "«well» one two, three four five six seven eight"
    )
    assert _runs("今日はとてもよい天気ですから散歩に行きました。") & _runs(
        "「今日はとてもよい天気ですから、散歩に行く」"
    )


def test_every_collection_has_chats_with_and_without_thoughts() -> None:
    for name, documents in collections().items():
        found = {document.content.thinking for document in documents if isinstance(document.content, Chat)}
        assert found == {False, True}, name
