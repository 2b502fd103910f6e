"""Documents from files: texts, chats as lines of JSON, directories, and what is none of them."""

import json

import pytest
from checkpoints import EXAMPLE
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.errors import TextError
from gemma4_quant.texts.documents import Chat, Document, Transcript, is_encodable, parse_line, read_documents

QUESTION = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}


def write_lines(path, *lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_text_file_is_one_document_without_its_last_line_break(tmp_path):
    path = write_lines(tmp_path / "notes.txt", "één", "two")
    assert read_documents(path) == (Document("notes.txt", "één\ntwo"),)


def test_each_line_of_a_file_of_chats_is_a_document_named_after_its_line(tmp_path):
    tool = {"type": "function", "function": {"name": "find"}}
    path = write_lines(
        tmp_path / "chats.jsonl",
        json.dumps({"messages": [QUESTION, ANSWER], "id": 7}),
        "",
        json.dumps({"messages": [QUESTION], "tools": [tool], "thinking": True}),
    )
    assert read_documents(path) == (
        Document("chats.jsonl:1", Chat((QUESTION, ANSWER))),
        Document("chats.jsonl:3", Chat((QUESTION,), (tool,), thinking=True)),
    )


def test_the_example_chats_are_read():
    documents = read_documents(EXAMPLE / "evaluation_chat.jsonl")
    lines = (EXAMPLE / "evaluation_chat.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(documents) == len(lines)
    assert [list(document.content.messages) for document in documents] == [
        json.loads(line)["messages"] for line in lines
    ]


@pytest.mark.parametrize(
    ("line", "thinking"),
    [
        ({"messages": [QUESTION, {**ANSWER, "reasoning_content": "Hm."}]}, True),
        ({"messages": [QUESTION, {**ANSWER, "reasoning": "Hm."}], "thinking": False}, False),
        ({"messages": [QUESTION, ANSWER], "thinking": True}, True),
        ({"messages": [QUESTION, ANSWER], "thinking": None}, False),
    ],
)
def test_a_chat_thinks_when_it_says_so_or_holds_thoughts(line, thinking):
    assert parse_line(json.dumps(line).encode()).thinking is thinking


def test_a_transcript_keeps_its_markers(tmp_path):
    path = write_lines(tmp_path / "self.jsonl", json.dumps({"transcript": "<|turn>user\nWhy?<turn|>", "run": "1"}))
    assert read_documents(path) == (Document("self.jsonl:1", Transcript("<|turn>user\nWhy?<turn|>")),)


def test_a_directory_is_read_in_order_without_what_is_no_text(tmp_path, caplog):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    write_lines(tmp_path / "b" / "x.md", "below")
    write_lines(tmp_path / "c.jsonl", json.dumps({"messages": [QUESTION]}))
    write_lines(tmp_path / "a.txt", "first")
    write_lines(tmp_path / ".hidden", "hidden")
    write_lines(tmp_path / ".git" / "config", "hidden")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\x00\xff")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [document.name for document in read_documents(tmp_path)] == ["a.txt", "b/x.md", "c.jsonl:1"]
    (record,) = caplog.records
    assert "empty.txt, picture.png" in record.getMessage()


def test_a_directory_without_text_is_refused(tmp_path):
    with pytest.raises(TextError, match="holds no text"):
        read_documents(tmp_path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a list, not an object"),
        ('{"messages": NaN}', "not a JSON number"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "`messages` is missing"),
        ('{"messages": []}', "`messages` is missing or empty"),
        ('{"messages": "hello"}', "`messages` is the text 'hello', not a list"),
        ('{"messages": ["hello"]}', "`messages` holds the text 'hello'"),
        ('{"messages": [{"content": "x"}]}', "message 1 has no `role`"),
        ('{"messages": [{"role": "user"}]}', "message 1 has neither `content` nor tool calls"),
        ('{"messages": [{"role": "user", "content": 3}]}', "`content` of message 1 is the number 3"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', "where a part"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "part of type 'image'"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "no `text`"),
        ('{"messages": [{"role": "assistant", "tool_calls": {}}]}', "`tool_calls` is an object"),
        ('{"messages": [{"role": "assistant", "content": "", "reasoning": 1}]}', "`reasoning` of message 1"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": {}}', "`tools` is an object, not a list"),
        ('{"messages": [{"role": "user", "content": "x"}], "thinking": "on"}', "`thinking` is the text 'on'"),
        ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', "half a surrogate pair"),
        ('{"transcript": "\\ud83d"}', "half a surrogate pair"),
        ('{"transcript": ["x"]}', "`transcript` is a list, not a text"),
    ],
)
def test_a_line_that_is_no_chat_is_refused_with_its_number(tmp_path, line, reason):
    path = write_lines(tmp_path / "chats.jsonl", json.dumps({"messages": [QUESTION]}), "", line)
    with pytest.raises(TextError, match=r"chats\.jsonl:3: ") as caught:
        read_documents(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_that_is_not_utf8_is_refused_with_its_number(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_bytes(json.dumps({"messages": [QUESTION]}).encode() + b'\n{"messages": "\xff"}\n')
    with pytest.raises(TextError, match=r"chats\.jsonl:2: .*not valid JSON"):
        read_documents(path)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_text_is_refused(tmp_path, content):
    for name, reason in (("chats.jsonl", "holds no chats"), ("notes.txt", "is empty")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TextError, match=reason):
            read_documents(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "nowhere.txt", tmp_path / "nowhere.jsonl", tmp_path / ("x" * 300)):
        with pytest.raises(TextError, match="cannot read the text"):
            read_documents(path)


def test_windows_line_ends_and_a_byte_order_mark_are_taken(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": [QUESTION]}).encode() + b"\r\n")
    assert read_documents(path) == (Document("chats.jsonl:1", Chat((QUESTION,))),)


@given(
    st.recursive(
        st.text(st.characters(), max_size=4), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_halves_of_surrogate_pairs_are_found_wherever_they_are(value):
    assert is_encodable(value) == (not any("\ud800" <= letter <= "\udfff" for letter in json_letters(value)))


def json_letters(value):
    return json.dumps(value, ensure_ascii=False)
