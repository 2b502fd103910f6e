"""The chat template of a file: the checkpoint's own, and one that renders the turns of Gemma 4."""

from collections.abc import Iterator, Mapping

from gemma4_quant.chat.model_template import TEMPLATE, TOKENS, special_texts
from gemma4_quant.chat.templates import ChatTemplate, Conversation
from gemma4_quant.errors import ChatTemplateError, GgufError
from gemma4_quant.metadata import Metadata, ValueType, get_string
from gemma4_quant.verification.findings import Finding, Part

PREFIX = TEMPLATE
"""Further templates are kept under names that begin so."""

_QUESTION, _ANSWER, _RULE = "What is the capital of Norway?", "Oslo.", "Answer briefly."
_USER = {"role": "user", "content": _QUESTION}
_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "find_city",
            "description": "Finds a city.",
            "parameters": {
                "type": "object",
                "properties": {"country": {"type": "string", "description": "Its name.", "enum": ["Norway"]}},
                "required": ["country"],
            },
        },
    },
)
_CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "find_city", "arguments": {"country": "Norway"}}}],
}
_RESULT = {"role": "tool", "name": "find_city", "content": '{"city": "Oslo"}'}

CONVERSATIONS: Mapping[str, Conversation] = {
    "a question": Conversation([_USER]),
    "a system turn": Conversation([{"role": "system", "content": _RULE}, _USER]),
    "several turns": Conversation([_USER, {"role": "assistant", "content": _ANSWER}, _USER]),
    "a finished conversation": Conversation(
        [_USER, {"role": "assistant", "content": _ANSWER}], add_generation_prompt=False
    ),
    "thinking": Conversation([_USER], enable_thinking=True),
    "parts": Conversation([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _QUESTION}]}]),
    "tools": Conversation([_USER], tools=_TOOLS),
    "a tool's answer": Conversation([_USER, _CALL, _RESULT], tools=_TOOLS),
}
"""What every template is asked to render."""

# Turns of Gemma 4 (docs of the model family; the template it is released with).
_USER_TURN = f"<|turn>user\n{_QUESTION}<turn|>\n"
FRAMES: Mapping[str, tuple[str, ...]] = {
    "a question": (_USER_TURN, "<|turn>model\n"),
    "a system turn": (f"<|turn>system\n{_RULE}", _USER_TURN, "<|turn>model\n"),
    "several turns": (_USER_TURN, f"<|turn>model\n{_ANSWER}<turn|>\n", _USER_TURN, "<|turn>model\n"),
    "a finished conversation": (_USER_TURN, f"<|turn>model\n{_ANSWER}<turn|>\n"),
    "thinking": ("<|think|>", _USER_TURN, "<|turn>model\n"),
    "parts": ("<|image|>", _QUESTION, "<turn|>\n", "<|turn>model\n"),
}
"""What must follow one another in what a template makes of a conversation."""

_TURN_TOKEN = "<|turn>"


def compare_templates(file: Metadata, original: Metadata) -> Part:
    """Compare the templates of two models, and render the file's; raises RunError when no child process starts."""
    findings = list(_text_differences(file, original))
    names = [key for key in file if key.startswith(PREFIX) and file[key].type is ValueType.STRING]
    for name in names:
        is_own = name in original and file[name] == original[name]
        findings += _rendered_faults(name, file, is_gemma=_has_turns(original), is_own=is_own)
    return Part("chat template", len(names) * len(CONVERSATIONS), "conversations", tuple(findings))


def _text_differences(file: Metadata, original: Metadata) -> Iterator[Finding]:
    for key in {**original, **file}:
        if not key.startswith(PREFIX):
            continue
        if key not in file:
            yield Finding(key, "is missing; the checkpoint has one")
        elif key not in original:
            yield Finding(key, "is there, but the checkpoint has none", is_fault=False)
        elif file[key] != original[key]:
            yield Finding(key, _first_difference(file, original, key))


def _first_difference(file: Metadata, original: Metadata, key: str) -> str:
    try:
        found, expected = get_string(file, key).splitlines(), get_string(original, key).splitlines()
    except GgufError:
        return "is not the checkpoint's"
    at = next((i for i, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), None)
    if at is None:
        at = min(len(found), len(expected))
    line = found[at].strip()[:60] if at < len(found) else ""
    right = expected[at].strip()[:60] if at < len(expected) else ""
    return f"is not the checkpoint's: line {at + 1} is {line!r}, not {right!r}"


def _has_turns(original: Metadata) -> bool:
    """Tell whether a model's vocabulary has Gemma 4's turns and its own template uses them."""
    return _TURN_TOKEN in original[TOKENS].decode() and _TURN_TOKEN in get_string(original, PREFIX, "")


def _rendered_faults(key: str, file: Metadata, *, is_gemma: bool, is_own: bool) -> Iterator[Finding]:
    """Yield what is wrong with the conversations that a template renders.

    is_own: it is the checkpoint's own; then only a failure to render even a question is a fault.
    """
    try:
        with ChatTemplate(get_string(file, key), **special_texts(file)) as template:
            for number, (name, conversation) in enumerate(CONVERSATIONS.items()):
                try:
                    text = template.render(conversation)
                except ChatTemplateError as error:
                    yield Finding(key, f"fails at {name}: {error}", is_fault=number == 0 or not is_own)
                    if number == 0 or template.has_ended:
                        return
                else:
                    yield from _conversation_faults(key, name, text, is_gemma=is_gemma, is_fault=not is_own)
    except ChatTemplateError as error:
        yield Finding(key, str(error))


def _conversation_faults(key: str, name: str, text: str, *, is_gemma: bool, is_fault: bool) -> Iterator[Finding]:
    at = 0
    for frame in FRAMES.get(name, (_QUESTION,)) if is_gemma else (_QUESTION,):
        found = text.find(frame, at)
        if found < 0:
            yield Finding(key, f"makes {text[-200:]!r} of {name}, without {frame!r} in its place", is_fault)
            return
        at = found + len(frame)
