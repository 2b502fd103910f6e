"""The built-in calibration corpus: varied from its first documents on."""

import re
import unicodedata
from collections import Counter

from written_texts import passages

from gemma4_quant.calibration.corpus import FOLDER, corpus_documents
from gemma4_quant.texts.documents import Chat

KINDS = {"code", "dialogue", "documents", "json", "languages", "mathematics", "thinking", "tools"}


def _kind(name: str) -> str:
    return name.partition("/")[0]


def test_every_kind_has_several_documents() -> None:
    counts = Counter(_kind(document.name) for document in corpus_documents())
    assert set(counts) == KINDS
    assert min(counts.values()) >= 5


def test_any_quarter_of_the_corpus_has_all_kinds() -> None:
    documents = corpus_documents()
    n = len(documents) // 4
    for start in range(0, 4 * n, n):
        assert {_kind(document.name) for document in documents[start : start + n]} == KINDS


def test_at_least_ten_programming_languages_are_in_it() -> None:
    suffixes = {path.name.split(".")[-2] for path in (FOLDER / "code").glob("*.*.txt")}
    assert len(suffixes) >= 10


def test_many_scripts_are_in_it() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.*"))
    letters = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    assert sum(n >= 200 for n in letters.values()) >= 15


def test_chats_end_with_the_models_words() -> None:
    for document in corpus_documents():
        if isinstance(document.content, Chat):
            assert document.content.messages[-1]["role"] == "assistant", document.name


def test_dialogues_have_several_turns() -> None:
    for document in corpus_documents():
        if _kind(document.name) == "dialogue" and isinstance(document.content, Chat):
            assert sum(message["role"] == "user" for message in document.content.messages) > 1, document.name


def test_text_is_no_filler() -> None:
    """No two documents share a sentence of some length."""
    sentences: Counter[str] = Counter()
    for document in corpus_documents():
        text = "\n".join(passages(document))
        sentences.update(set(re.findall(r"[^.!?。？！\n]{40,}[.!?。？！]", text)))
    repeated = {sentence for sentence, n in sentences.items() if n > 1}
    assert repeated == set()
    assert len(sentences) > 400
