"""Documents from files: plain text, chats as lines of JSON, and directories of both."""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gemma4_quant.errors import TextError, listed
from gemma4_quant.formats.json_input import json_object, kind_of
from gemma4_quant.text import read_text

logger = logging.getLogger(__name__)

MAX_CHATS_BYTES = 1 << 30
"""A file of chats is held in memory while it is read."""

_BOM = b"\xef\xbb\xbf"
_CHATS = ".jsonl"


@dataclass(frozen=True)
class Chat:
    """A conversation, as transformers' chat templates take it.

    messages: each with `role` and `content` (a text, or a list of parts `{"type": "text", "text": …}`), and maybe
    `tool_calls`, `reasoning_content`, …. tools: functions as JSON schemas. thinking: the model is asked to think.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: bool = False


@dataclass(frozen=True)
class Transcript:
    """A text as a model reads and writes it after BOS: turns and other markers are in it, and are read as such."""

    text: str


@dataclass(frozen=True)
class Document:
    """A text or a conversation; name says where it comes from, such as `notes.txt` or `chats.jsonl:12`."""

    name: str
    content: str | Chat | Transcript


def read_documents(path: Path) -> tuple[Document, ...]:
    """Read what a user names: a UTF-8 text, a `.jsonl` file of chats, or a directory with such files in it.

    A line of chats is an object with `messages`, and maybe `tools` and `thinking` (when it is not said, whether a
    message holds `reasoning_content`), or with a `transcript`; what else it holds is left alone. Directories are read
    in the order of their paths, without hidden files; what is no text in them is left out with a warning. Raises
    TextError for what cannot be read, with file and line.
    """
    try:
        is_directory = path.is_dir()
    except OSError as error:
        raise TextError(f"cannot read the text {path}: {error.strerror}") from error
    return _read_directory(path) if is_directory else _read_file(path, path.name)


def _read_file(path: Path, name: str) -> tuple[Document, ...]:
    if path.suffix.lower() == _CHATS:
        return tuple(_read_chats(path, name))
    return (Document(name, read_text(path)),)


def _read_directory(folder: Path) -> tuple[Document, ...]:
    documents: list[Document] = []
    left_out: list[str] = []
    for path in _files_below(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() == _CHATS or _is_text(path):
            documents += _read_file(path, name)
        else:
            left_out.append(name)
    if not documents:
        raise TextError(f"the directory {folder} holds no text; give one with UTF-8 texts or {_CHATS} files of chats")
    if left_out:
        logger.warning(
            "%d files of %s are empty or no text and are left out: %s", len(left_out), folder, listed(left_out)
        )
    return tuple(documents)


def _files_below(folder: Path) -> list[Path]:
    """Return regular files that are not hidden, in the order of their paths; does not follow links to directories."""

    def refuse(error: OSError) -> NoReturn:
        raise TextError(f"cannot read the directory {error.filename}: {error.strerror}") from error

    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(folder).parts)


def _is_text(path: Path) -> bool:
    """Tell whether a file has text in it: neither bytes that are not UTF-8, nor zeros, nor nothing."""
    data = _read_bytes(path)
    try:
        return b"\0" not in data and bool(data.decode().strip())
    except UnicodeDecodeError:
        return False


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CHATS_BYTES + 1)
    except OSError as error:
        raise TextError(f"cannot read the text {path}: {error.strerror}") from error
    if len(data) > MAX_CHATS_BYTES:
        raise TextError(f"{path} is larger than {MAX_CHATS_BYTES >> 30} GiB; split it")
    return data


def _read_chats(path: Path, name: str) -> Iterator[Document]:
    n_chats = 0
    for number, line in enumerate(_read_bytes(path).removeprefix(_BOM).split(b"\n"), 1):
        if not line.strip():
            continue
        n_chats += 1
        try:
            yield Document(f"{name}:{number}", parse_line(line))
        except ValueError as error:
            raise TextError(f"{path}:{number}: {error}") from error
    if n_chats == 0:
        raise TextError(f"{path} holds no chats; each of its lines must be an object with `messages`")


def parse_line(line: bytes) -> Chat | Transcript:
    """Read a line of a file of chats; raises ValueError with what is wrong with it."""
    try:
        fields = json_object(line)
    except ValueError as error:
        raise ValueError(f"the line {error}") from error
    if not is_encodable(fields):
        raise ValueError("it holds half a surrogate pair (such as \\ud83d without its \\ude00), which is no text")
    return _transcript(fields) if "transcript" in fields else _chat(fields)


def _transcript(fields: Mapping[str, Any]) -> Transcript:
    text = fields["transcript"]
    if not isinstance(text, str):
        raise ValueError(f"`transcript` is {kind_of(text)}, not a text")
    return Transcript(text)


def _chat(fields: Mapping[str, Any]) -> Chat:
    messages = _objects(fields, "messages")
    if not messages:
        raise ValueError("`messages` is missing or empty; a chat has at least one message")
    for number, message in enumerate(messages, 1):
        _check_message(message, f"message {number}")
    thinks = any(message.get("reasoning_content") or message.get("reasoning") for message in messages)
    thinking = fields.get("thinking")
    if not isinstance(thinking, bool | None):
        raise ValueError(f"`thinking` is {kind_of(thinking)}, not true or false")
    return Chat(messages, _objects(fields, "tools"), thinks if thinking is None else thinking)


def _objects(fields: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any], ...]:
    values = fields.get(key)
    if values is None:
        return ()
    if not isinstance(values, list):
        raise ValueError(f"`{key}` is {kind_of(values)}, not a list")
    for value in values:
        if not isinstance(value, dict):
            raise ValueError(f"`{key}` holds {kind_of(value)} where an object is expected")
    return tuple(values)


def _check_message(message: Mapping[str, Any], what: str) -> None:
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{what} has no `role`, such as user or assistant")
    for key in ("reasoning_content", "reasoning"):
        if not isinstance(message.get(key), str | None):
            raise ValueError(f"`{key}` of {what} is {kind_of(message[key])}, not a text")
    _objects(message, "tool_calls")
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            _check_part(part, what)
    elif not isinstance(content, str | None):
        raise ValueError(f"`content` of {what} is {kind_of(content)}, not a text or a list of parts")
    elif content is None and not message.get("tool_calls") and not message.get("tool_responses"):
        raise ValueError(f"{what} has neither `content` nor tool calls")


def _check_part(part: object, what: str) -> None:
    if not isinstance(part, dict):
        raise ValueError(f"{what} holds {kind_of(part)} where a part, an object with `type`, is expected")
    if part.get("type") != "text":
        raise ValueError(
            f"{what} holds a part of type {str(part.get('type'))[:40]!r}; only parts of text can be read"
        )
    if not isinstance(part.get("text"), str):
        raise ValueError(f"a part of {what} has no `text`")


def is_encodable(value: object) -> bool:
    """Tell whether all texts in a JSON value have a UTF-8 form; halves of surrogate pairs have none."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, Mapping):
        return all(is_encodable(key) and is_encodable(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_encodable, value))
    return True
