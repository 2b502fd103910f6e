"""Tokens, their types, merges and special ids of a file held against the checkpoint's tokenizer."""

from collections.abc import Iterator, Sequence

import numpy as np

from gemma4_quant.converters.vocabulary import BYTE, CONTROL, NORMAL, USER_DEFINED
from gemma4_quant.errors import GgufError, listed
from gemma4_quant.metadata import Metadata, ValueType, get_int
from gemma4_quant.verification.findings import Finding
from gemma4_quant.verification.settings import same_value, shown

PREFIX = "tokenizer."
TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
MERGES, SCORES = "tokenizer.ggml.merges", "tokenizer.ggml.scores"
_TEMPLATES = "tokenizer.chat_template"
_LISTS = (TOKENS, TYPES, MERGES, SCORES)

_TYPE_NAMES = {
    NORMAL: "normal",
    2: "unknown",
    CONTROL: "control",
    USER_DEFINED: "user-defined",
    5: "unused",
    BYTE: "byte",
}

TURN_ENDS = ("<turn|>", "<eos>")
"""Tokens that end what the model says: a file may name them where the converter names none."""


def compare_vocabulary(file: Metadata, original: Metadata) -> Iterator[Finding]:
    """Yield every difference between the tokenizer keys of two models, but for chat templates.

    Scores, which a BPE tokenizer does not use, and keys beyond the original's are noted, not faults; an id that the
    original does not give must still end a turn if it claims to.
    """
    if TOKENS not in file:
        yield Finding(TOKENS, "is missing: the file has no vocabulary")
        return
    texts = _texts(file, TOKENS)
    yield from _list_differences("token", texts, _texts(original, TOKENS))
    yield from _type_differences(file, original, texts)
    yield from _list_differences("merge", _texts(file, MERGES), _texts(original, MERGES))
    if SCORES in original and (SCORES not in file or file[SCORES].data != original[SCORES].data):
        yield Finding(SCORES, "differ from the checkpoint's, which changes nothing", is_fault=False)
    keys = [key for key in {**original, **file} if key.startswith(PREFIX) and not key.startswith(_TEMPLATES)]
    for key in keys:
        if key not in _LISTS:
            yield from _key_difference(key, file, original, texts)


def _texts(metadata: Metadata, key: str) -> Sequence[str]:
    value = metadata.get(key)
    if value is None:
        return ()
    if value.item is not ValueType.STRING:
        raise GgufError(f"{key} is {value.describe_type()}, not an array of strings")
    texts: Sequence[str] = value.decode()
    return texts


def _list_differences(what: str, found: Sequence[str], expected: Sequence[str]) -> Iterator[Finding]:
    if found == expected:
        return
    if len(found) != len(expected):
        yield Finding(f"{what}s", f"are {len(found):,}, not {len(expected):,}")
    wrong = [i for i, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other]
    if wrong:
        first = wrong[0]
        yield Finding(
            f"{what} {first}",
            f"is {found[first][:80]!r}, not {expected[first][:80]!r}; {len(wrong):,} {what}s differ",
        )


def _type_differences(file: Metadata, original: Metadata, texts: Sequence[str]) -> Iterator[Finding]:
    if TYPES not in original:
        return
    if TYPES not in file:
        yield Finding(TYPES, "is missing, so special tokens are read as letters")
        return
    found, expected = file[TYPES].array(), original[TYPES].array()
    length = min(len(found), len(expected), len(texts))
    if len(found) != len(texts):
        yield Finding(TYPES, f"has {len(found):,} entries for {len(texts):,} tokens")
    wrong = np.flatnonzero(found[:length] != expected[:length]).tolist()
    kinds = sorted({(int(found[i]), int(expected[i])) for i in wrong})
    for kind, right in kinds:
        names = [texts[i] for i in wrong if (found[i], expected[i]) == (kind, right)]
        shown_names = listed((repr(name[:40]) for name in names), 7)
        yield Finding(
            TYPES, f"of {shown_names} is {_TYPE_NAMES.get(kind, kind)}, not {_TYPE_NAMES.get(right, right)}"
        )


def _key_difference(key: str, file: Metadata, original: Metadata, texts: Sequence[str]) -> Iterator[Finding]:
    is_id = key.endswith("_token_id")
    if key not in file:
        yield Finding(key, f"is missing; it should be {_token(key, original, texts)}")
    elif key not in original:
        problem = f"is {_token(key, file, texts)}; the checkpoint's tokenizer gives none"
        ends_turn = not key.endswith((".eot_token_id", ".eom_token_id")) or _is_turn_end(key, file, texts)
        yield Finding(key, problem, is_fault=is_id and not ends_turn)
    elif not same_value(file[key], original[key]):
        yield Finding(key, f"is {_token(key, file, texts)}, not {_token(key, original, texts)}")


def _is_turn_end(key: str, metadata: Metadata, texts: Sequence[str]) -> bool:
    number = get_int(metadata, key)
    return 0 <= number < len(texts) and texts[number] in TURN_ENDS


def _token(key: str, metadata: Metadata, texts: Sequence[str]) -> str:
    """Return a value for a message, an id with the text of its token."""
    value = shown(metadata[key])
    if not key.endswith("_token_id") or not value.isdecimal() or int(value) >= len(texts):
        return value
    return f"{value} ({texts[int(value)][:40]!r})"
