"""The tokenizer of a file: its lists and ids, and the tokens that llama.cpp makes of probe texts with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma4_quant.converters.vocabulary import CONTROL, NORMAL, USER_DEFINED
from gemma4_quant.errors import GgufError, listed
from gemma4_quant.limited_process import LimitedProcess, LimitExceededError, Limits
from gemma4_quant.metadata import Metadata
from gemma4_quant.verification.findings import Finding, Part
from gemma4_quant.verification.probe import probe_texts
from gemma4_quant.verification.vocabulary import TOKENS, TYPES, compare_vocabulary

LIMITS = Limits(seconds=120.0, memory_bytes=4 << 30)
"""Gemma 4's tokenizer.json takes the tokenizers library 2 s and 360 MB, its GGUF vocabulary llama.cpp 1 s; memory
here is address space, most of it never touched."""

_NAMED_TEXTS = 3
_MAX_SPECIAL = 64


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and where it is described. path: tokenizer.json, or a GGUF file."""

    path: Path
    metadata: Metadata


class _CannotTokenizeError(Exception):
    """A tokenizer does not load; the message says why."""


def compare_tokenizers(file: Tokenizer, original: Tokenizer) -> Part:
    """Compare vocabularies, and the tokens of probe texts: llama.cpp's with `file`, and those of the original.

    The tokenizers library makes the original's when it is a tokenizer.json. Raises GgufError for a vocabulary of
    another kind than tokens are stored in.
    """
    findings = list(compare_vocabulary(file.metadata, original.metadata))
    special = _special(original.metadata)
    texts = probe_texts(special)
    findings += _probe_differences(texts, file, original)
    return Part("tokenizer", len(texts), "texts", tuple(findings))


def _special(metadata: Metadata) -> list[str]:
    """Return the texts of tokens that are read as a whole, but for bytes and the many unused ones."""
    if TOKENS not in metadata or TYPES not in metadata:
        raise GgufError(f"there is no {TOKENS} or no {TYPES}")
    types = metadata[TYPES].array()
    numbers = np.flatnonzero((types == CONTROL) | (types == USER_DEFINED))
    texts = metadata[TOKENS].decode()
    return [texts[number] for number in numbers[:_MAX_SPECIAL]]


def _probe_differences(texts: Sequence[str], file: Tokenizer, original: Tokenizer) -> Iterator[Finding]:
    try:
        with LimitedProcess("gemma4_quant.runner.tokenizer_worker", LIMITS) as worker:
            found, reference = _tokenized(worker, file.path, texts).tokens, _tokenized(worker, original.path, texts)
    except _CannotTokenizeError as error:
        yield Finding("tokenizer", str(error))
        return
    yield from _special_as_letters(reference.special, original.metadata)
    expected = reference.tokens
    wrong = [i for i, text in enumerate(texts) if found[i] != expected[i]]
    for i in wrong[:_NAMED_TEXTS]:
        at = next((k for k, (a, b) in enumerate(zip(found[i], expected[i], strict=False)) if a != b), len(found[i]))
        yield Finding(
            f"text {texts[i][:40]!r}",
            f"becomes {len(found[i])} tokens, not {len(expected[i])}; from token {at} on "
            f"{listed(map(str, found[i][at:]), 5)}, not {listed(map(str, expected[i][at:]), 5)}",
        )
    if len(wrong) > _NAMED_TEXTS:
        yield Finding("texts", f"{len(wrong) - _NAMED_TEXTS} more of {len(texts)} become other tokens")


def _special_as_letters(special: Sequence[str], original: Metadata) -> Iterator[Finding]:
    """Note tokens that the checkpoint's tokenizer reads as a whole and llama.cpp, as it converts them, as letters."""
    types = original[TYPES].array()
    normal = {text for text, kind in zip(original[TOKENS].decode(), types, strict=False) if kind == NORMAL}
    letters = [text for text in special if text in normal]
    if letters:
        yield Finding(
            TYPES,
            f"of {listed(letters, 3)} is normal, so llama.cpp reads them as letters: "
            "tokenizer_config.json gives them no role",
            is_fault=False,
        )


@dataclass(frozen=True)
class _Tokenized:
    """Ids of each text, and the texts that the tokenizers library takes for special tokens."""

    tokens: list[list[int]]
    special: list[str]


def _tokenized(worker: LimitedProcess, path: Path, texts: Sequence[str]) -> _Tokenized:
    try:
        answer = worker.ask({"path": str(path.absolute()), "texts": list(texts)})
    except LimitExceededError as error:
        raise _CannotTokenizeError(f"of {path.name} cannot be used: {error}") from error
    failure = answer.get("failure") or answer.get("refused")
    if failure:
        raise _CannotTokenizeError(f"of {path.name} cannot be used: {failure}")
    return _Tokenized(answer["tokens"], answer["special"])
