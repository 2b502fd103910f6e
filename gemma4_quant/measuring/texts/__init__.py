"""The built-in evaluation texts, in our own words: below `by-domain`, a folder of chats or plain texts for each.

None of them shares a phrase with the calibration corpus or its prompts, so that measuring on them is fair after
calibrating on those.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from gemma4_quant.texts.documents import Document, read_documents

FOLDER = Path(__file__).parent / "by-domain"
"""No name of a package: folders of texts are data, also for setuptools."""

DOMAINS = ("languages", "code", "mathematics", "tools", "documents")


@cache
def builtin_domains() -> Mapping[str, tuple[Document, ...]]:
    """Return the evaluation texts by domain; names of documents are unique within a domain only."""
    return MappingProxyType({domain: read_documents(FOLDER / domain) for domain in DOMAINS})
