"""The texts that ship with the package, taken apart for tests: every string a person wrote, and code in it."""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemma4_quant.calibration import corpus, prompts
from gemma4_quant.measuring import texts as evaluation
from gemma4_quant.texts.documents import Chat, Document

FOLDERS = {"corpus": corpus.FOLDER, "prompts": prompts.FOLDER, "evaluation": evaluation.FOLDER}
"""Where the files of each collection are."""


def files() -> list[Path]:
    """List all files of texts."""
    return sorted(
        path for folder in FOLDERS.values() for path in folder.rglob("*") if path.suffix in {".jsonl", ".txt"}
    )


@functools.cache
def collections() -> Mapping[str, tuple[Document, ...]]:
    """Return the documents of each collection, with prompts as chats that end with the user."""
    return {
        "corpus": corpus.corpus_documents(),
        "prompts": tuple(Document(p.name, Chat(p.messages, p.tools, p.thinking)) for p in prompts.prompts()),
        "evaluation": tuple(
            Document(f"{domain}/{document.name}", document.content)
            for domain, documents in evaluation.builtin_domains().items()
            for document in documents
        ),
    }


def chats() -> list[tuple[str, Chat]]:
    """List all conversations of all collections with their names."""
    return [
        (f"{name}: {document.name}", document.content)
        for name, documents in collections().items()
        for document in documents
        if isinstance(document.content, Chat)
    ]


def passages(document: Document) -> list[str]:
    """Return what somebody wrote in a document: words of messages, thoughts, values of arguments, descriptions."""
    if isinstance(document.content, str):
        return [document.content]
    found: list[str] = []
    for message in document.content.messages:
        found += [message.get("reasoning_content", ""), message["content"]]
        found += [text for call in message.get("tool_calls", ()) for text in _texts(call["function"]["arguments"])]
    found += [text for tool in document.content.tools for text in _descriptions(tool)]
    return list(filter(None, found))


def fenced(language: str) -> Iterator[tuple[str, str]]:
    """Yield the code blocks of a language in all documents, each with the document's name."""
    for name, documents in collections().items():
        for document in documents:
            for passage in passages(document):
                for block in re.findall(rf"^```{language}\n(.*?)^```", passage, re.DOTALL | re.MULTILINE):
                    yield f"{name}: {document.name}", block


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in values for text in _texts(item)]


def _descriptions(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [text for item in schema for text in _descriptions(item)]
    if not isinstance(schema, dict):
        return []
    own = [schema["description"]] if isinstance(schema.get("description"), str) else []
    return own + [text for item in schema.values() for text in _descriptions(item)]
