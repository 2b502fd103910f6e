"""The built-in calibration corpus: texts and chats in our own words, in folders below `by-kind`."""

from functools import cache
from itertools import groupby
from pathlib import Path

from gemma4_quant.texts.documents import Document, read_documents
from gemma4_quant.texts.mixing import interleaved

FOLDER = Path(__file__).parent / "by-kind"
"""No name of a package: folders of texts are data, also for setuptools."""


@cache
def corpus_documents() -> tuple[Document, ...]:
    """Return the corpus, its kinds spread evenly, so that a short run meets all of them.

    Names are paths below `by-kind`, with the line for chats: `code/utf8_check.c.txt`, `tools/calls.jsonl:3`.
    """
    by_kind = groupby(read_documents(FOLDER), key=_kind)
    return interleaved([tuple(documents) for _, documents in by_kind])


def _kind(document: Document) -> str:
    return document.name.partition("/")[0]
