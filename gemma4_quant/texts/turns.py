"""Chats rendered by the model's own template, with the model's words marked.

Words are found by rendering a chat twice, once with two characters around each of the model's words that occur
nowhere else. Wherever the template moves or trims them, what stands between is the model's.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from gemma4_quant.chat.templates import ChatTemplate, Conversation
from gemma4_quant.errors import ChatTemplateError
from gemma4_quant.texts.documents import Chat

logger = logging.getLogger(__name__)

Message = Mapping[str, Any]

MODEL_ROLES = frozenset({"assistant", "model"})

REQUEST = "Write a text."
"""What the user asks before a plain text, for templates have the model speak only when it was asked."""

# Gemma 4's template: the channel of thoughts, which opens the model's turn.
CHANNEL, END_OF_CHANNEL = "<|channel>", "<channel|>"
THOUGHT = f"{CHANNEL}thought\n"

_THOUGHTS = re.compile(rf"\s*{re.escape(THOUGHT)}(.*?)(?:{re.escape(END_OF_CHANNEL)}|\Z)", re.DOTALL)
_HEADERS = re.compile(rf"<\|turn>[^\n]*\n|{re.escape(THOUGHT)}|(?<=<turn\|>)\n")
"""What Gemma 4's template puts at the beginning and end of turns and thoughts."""
_PRIVATE = range(0xE000, 0xF900)
"""Unicode's private use area: characters without a meaning."""

_PLAIN = Chat(())


@dataclass(frozen=True)
class MarkedText:
    """A text, and which parts of it are the model's words: spans (start, stop) in characters, in order."""

    text: str
    spans: tuple[tuple[int, int], ...]


def split_thoughts(answer: str) -> tuple[str, str]:
    """Split what a model said into its thoughts and its answer; thoughts are empty where it did not think."""
    found = _THOUGHTS.match(answer)
    return ("", answer) if found is None else (found.group(1), answer[found.end() :])


def outside_headers(transcript: str) -> tuple[tuple[int, int], ...]:
    """Return the parts of a transcript, (start, stop) in characters, that do not say whose turn it is."""
    headers = [(found.start(), found.end()) for found in _HEADERS.finditer(transcript)]
    starts, stops = [0, *(stop for _, stop in headers)], [*(start for start, _ in headers), len(transcript)]
    return tuple((start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop)


def words_of(chat: Chat) -> str:
    """Return the words of a chat's messages, one after another."""
    return "\n\n".join(filter(None, (_content_text(message) for message in chat.messages)))


def _content_text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content or () if isinstance(part, Mapping))


class TurnRenderer:
    """A model's template, asked how it frames what the model says."""

    def __init__(self, template: ChatTemplate, source: str) -> None:
        """Ask the template for an answer; source: its text. Raises ChatTemplateError when it renders none.

        prompt: what stands before a plain text that the model says. closing: what stands after.
        """
        self._template = template
        self.has_channel = CHANNEL in source
        request = {"role": "user", "content": REQUEST}
        self.prompt = self._render([request], _PLAIN, opens_turn=True)
        answer = self._marked([request, {"role": "assistant", "content": "x"}], _PLAIN)
        if len(answer.spans) != 1:
            raise ChatTemplateError("the chat template leaves out what the model said")
        ((start, stop),) = answer.spans
        header, self.closing = answer.text[:start], answer.text[stop:]
        # What the template opens a turn with, when it asks the model for one, and leaves out of turns that are over.
        self._opening = self.prompt.removeprefix(header) if self.prompt.startswith(header) else ""

    def opening(self, chat: Chat) -> str:
        """Render a chat up to where the model is to answer; raises ChatTemplateError when the template refuses it."""
        return self._render([_prepared(message) for message in chat.messages], chat, opens_turn=True)

    def render(self, chat: Chat) -> MarkedText:
        """Render a chat; raises ChatTemplateError when the template refuses it.

        A last message of the model is rendered as the model says it: with the thought channel that it opens its turn
        with. Templates with such a channel leave it out of earlier turns; what is said there then stands elsewhere
        than where the model says it, and is not marked.
        """
        messages = [_prepared(message) for message in chat.messages]
        last = messages[-1]
        if last["role"] not in MODEL_ROLES:
            return self._without_history(self._marked(messages, chat))
        if not self.has_channel:
            return self._marked(messages, chat)
        thoughts = last.pop("reasoning_content", None)
        whole = self._marked(messages, chat, only_last=True)
        if len(messages) == 1:
            return whole
        return self._as_said(
            self._render(messages[:-1], chat, opens_turn=True), whole, thoughts if thoughts and chat.thinking else ""
        )

    def _without_history(self, marked: MarkedText) -> MarkedText:
        return MarkedText(marked.text, ()) if self.has_channel else marked

    def _as_said(self, prompt: str, whole: MarkedText, thoughts: str) -> MarkedText:
        """Put the last message of a rendered chat behind the prompt that the model answers.

        The template renders a turn that is over without what it opened it with.
        """
        shared = prompt
        if self._opening and not whole.text.startswith(prompt):
            shared = prompt.removesuffix(self._opening)
        at = len(shared)
        if not whole.text.startswith(shared) or any(start < at for start, _ in whole.spans):
            return whole
        added, spans = prompt, [(start + len(prompt) - at, stop + len(prompt) - at) for start, stop in whole.spans]
        if thoughts and not whole.text.startswith(CHANNEL, at):
            said = THOUGHT + thoughts + ("" if thoughts.endswith("\n") else "\n") + END_OF_CHANNEL
            first = len(prompt) + len(THOUGHT)
            spans = [(start + len(said), stop + len(said)) for start, stop in spans]
            spans.insert(0, (first, first + len(thoughts)))
            added += said
        return MarkedText(added + whole.text[at:], tuple(spans))

    def _marked(self, messages: Sequence[Message], chat: Chat, *, only_last: bool = False) -> MarkedText:
        plain = self._render(messages, chat)
        marks = _unused_characters(plain, messages)
        first = len(messages) - 1 if only_last else 0
        marked = [
            _with_marks(message, *marks, is_last=i == len(messages) - 1)
            if i >= first and message["role"] in MODEL_ROLES
            else message
            for i, message in enumerate(messages)
        ]
        found = _without_marks(self._render(marked, chat), *marks)
        if found is None or found.text != plain:
            logger.warning("the chat template changes what the model said, so that its words cannot be told apart")
            return MarkedText(plain, ())
        return found

    def _render(self, messages: Sequence[Message], chat: Chat, *, opens_turn: bool = False) -> str:
        return self._template.render(
            Conversation(
                messages, chat.tools or None, add_generation_prompt=opens_turn, enable_thinking=chat.thinking
            )
        )


def _prepared(message: Message) -> dict[str, Any]:
    """Return a message as templates expect it: arguments as objects, thoughts beside the answer."""
    prepared = dict(message)
    if prepared["role"] in MODEL_ROLES:
        reasoning = prepared.pop("reasoning", None)
        if reasoning and not prepared.get("reasoning_content"):
            prepared["reasoning_content"] = reasoning
        if isinstance(content := prepared.get("content"), str):
            thoughts, prepared["content"] = split_thoughts(content)
            if thoughts and not prepared.get("reasoning_content"):
                prepared["reasoning_content"] = thoughts
    if prepared.get("tool_calls"):
        prepared["tool_calls"] = [_prepared_call(call) for call in prepared["tool_calls"]]
    return prepared


def _prepared_call(call: Message) -> Message:
    """Read the arguments of a call that are an object written as a text, as OpenAI's interface has them."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(parsed, dict) else call


def _unused_characters(plain: str, messages: Sequence[Message]) -> tuple[str, str]:
    used = set(plain) | set(json.dumps(messages, ensure_ascii=False))
    unused = (chr(code) for code in _PRIVATE if chr(code) not in used)
    try:
        return next(unused), next(unused)
    except StopIteration:
        raise ChatTemplateError(
            "a chat uses all of Unicode's private characters, so none is left to mark words"
        ) from None


def _with_marks(message: Message, opening: str, closing: str, *, is_last: bool) -> Message:
    """Put marks around the words of a message of the model: its answer, its thoughts, texts in its tool calls.

    Keys of arguments stay as they are, for templates sort them, and names of functions in all but the last message,
    for templates repeat them in front of what the function answered.
    """

    def mark(value: Any) -> Any:
        if isinstance(value, str):  # inside of blanks at the ends, for templates trim those
            words = value.strip()
            return value.replace(words, f"{opening}{words}{closing}", 1) if words else value
        if isinstance(value, Mapping):
            return {key: mark(item) for key, item in value.items()}
        return [mark(item) for item in value] if isinstance(value, list) else value

    marked = dict(message)
    for key in {"content", "reasoning_content"} & set(marked):
        if isinstance(marked[key], str):
            marked[key] = mark(marked[key])
    if isinstance(parts := marked.get("content"), list):
        marked["content"] = [{**part, "text": mark(part["text"])} for part in parts]
    if calls := marked.get("tool_calls"):
        keys = {"name", "arguments"} if is_last else {"arguments"}
        marked["tool_calls"] = [_with_marked_values(call, mark, keys) for call in calls]
    return marked


def _with_marked_values(call: Message, mark: Callable[[Any], Any], keys: Set[str]) -> Message:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return call
    return {**call, "function": {key: mark(value) if key in keys else value for key, value in function.items()}}


def _without_marks(text: str, opening: str, closing: str) -> MarkedText | None:
    """Take marks out of a rendered text; None when they do not come in pairs."""
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    at = 0
    for is_marked, piece in _pieces(text, opening, closing):
        if opening in piece or closing in piece:
            return None
        if is_marked and spans and spans[-1][1] == at:
            spans[-1] = (spans[-1][0], at + len(piece))
        elif is_marked:
            spans.append((at, at + len(piece)))
        pieces.append(piece)
        at += len(piece)
    return MarkedText("".join(pieces), tuple(spans))


def _pieces(text: str, opening: str, closing: str) -> Iterator[tuple[bool, str]]:
    """Cut a text at pairs of marks; yield pieces, and whether they stood between marks."""
    for i, piece in enumerate(re.split(f"{opening}([^{opening}{closing}]*){closing}", text)):
        yield i % 2 == 1, piece
