"""What a model is asked when it writes its own calibration text: prompts in our own words, beside this module.

Each .jsonl file holds one prompt a line, as an object with `name`, `kind`, `language`, `messages` and, where they
apply, `programming_language`, `tools` and `thinking`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from gemma4_quant.texts.mixing import interleaved

FOLDER = Path(__file__).parent


class PromptKind(StrEnum):
    """What a prompt asks for."""

    LANGUAGE = "language"
    CODE = "code"
    MATHEMATICS = "mathematics"
    TOOLS = "tools"
    JSON = "json"
    DOCUMENT = "document"
    DIALOGUE = "dialogue"


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for the model's answer: its last message is the user's, or a tool's result.

    name: unique among prompts. language: BCP 47 tag of the words. programming_language: what the answer is written
    in, for kind `code`. messages, tools: as transformers' chat templates take them. thinking: ask the model to think
    first.
    """

    name: str
    kind: PromptKind
    language: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: bool = False
    programming_language: str | None = None


@cache
def prompts() -> tuple[Prompt, ...]:
    """Return all prompts, their files spread evenly, so that the first few are as varied as all."""
    return interleaved([_read(path) for path in sorted(FOLDER.glob("*.jsonl"))])


def _read(path: Path) -> tuple[Prompt, ...]:
    return tuple(_prompt(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())


def _prompt(fields: Mapping[str, Any]) -> Prompt:
    return Prompt(
        name=fields["name"],
        kind=PromptKind(fields["kind"]),
        language=fields["language"],
        messages=tuple(fields["messages"]),
        tools=tuple(fields.get("tools", ())),
        thinking=fields.get("thinking", False),
        programming_language=fields.get("programming_language"),
    )
