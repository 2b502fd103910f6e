"""tokenizer.json → token texts, types, scores and merges, as llama.cpp's converter writes them.

It goes through transformers' fast tokenizer there (gguf-py, LlamaHfVocab); this reads the file itself, in well
under two seconds for Gemma 4's 262,144 tokens and 514,906 merges.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from gemma4_quant.errors import CheckpointError
from gemma4_quant.formats.checkpoint import Checkpoint
from gemma4_quant.formats.json_input import kind_of
from gemma4_quant.metadata import Value, ValueType, numbers, strings

MAX_TOKENIZER_BYTES = 40 << 20
"""Gemma 4's tokenizer.json has 32 MB. Parsing can take ten times the size of a file, and more than once for texts."""

MAX_TOKENS = MAX_MERGES = 1 << 20
"""Gemma 4 has 262,144 tokens and 514,906 merges."""

SCORE = -1000.0
"""Score of every token: BPE merges carry the order, so llama.cpp's converter writes this one (LlamaHfVocab)."""

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
"""Token types (llama.h, enum llama_token_type)."""

VISIBLE = (
    "<|channel>",
    "<channel|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
)
"""Control tokens that must be printed: llama.cpp's chat parser reads them in the output (conversion/gemma.py)."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id. added: ids of the added tokens by text, in the order of the file."""

    texts: Sequence[str]
    n_base: int
    added: Mapping[str, int]
    merges: Sequence[str]


def read_tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return tokenizer.json; raises CheckpointError when it is missing or not a Gemma tokenizer."""
    tokenizer = checkpoint.read_json("tokenizer.json", MAX_TOKENIZER_BYTES)
    if tokenizer is None:
        raise CheckpointError(
            f"{checkpoint.directory} has no tokenizer.json; copy it from the checkpoint this one was made from"
        )
    model = tokenizer.get("model")
    decoder = tokenizer.get("decoder")
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        raise _damaged("it has no model or no decoder")
    if model.get("type") != "BPE" or model.get("byte_fallback") is not True or decoder.get("type") != "Sequence":
        raise _damaged("it is not a BPE tokenizer with byte fallback, as Gemma's is")
    return tokenizer


def read_vocabulary(tokenizer: Mapping[str, Any]) -> Vocabulary:
    """Read tokens and merges; raises CheckpointError when ids have gaps or appear twice, or a type is wrong."""
    base = tokenizer["model"].get("vocab")
    if not isinstance(base, dict) or not base:
        raise _damaged("model.vocab is not an object of tokens")
    if len(base) > MAX_TOKENS:
        raise _damaged(f"it has {len(base):,} tokens, more than {MAX_TOKENS:,}")
    if set(map(type, base.values())) != {int}:
        raise _damaged("model.vocab holds ids that are not whole numbers")
    added = _read_added(tokenizer.get("added_tokens"), base)
    appended = {text: number for text, number in added.items() if text not in base}
    n_tokens = len(base) + len(appended)
    numbered = {**base, **appended}
    _check_ids(numbered)
    texts = [""] * n_tokens  # every id is in range and none twice, so none is left out
    for text, number in numbered.items():
        texts[number] = text
    if any(number < len(base) for number in appended.values()):
        raise _damaged("an added token has an id between those of model.vocab")
    return Vocabulary(texts, len(base), added, _read_merges(tokenizer["model"]))


def _check_ids(ids: Mapping[str, int]) -> None:
    n_tokens = len(ids)
    if len(set(ids.values())) == n_tokens and min(ids.values()) >= 0 and max(ids.values()) < n_tokens:
        return
    seen: set[int] = set()
    for text, number in ids.items():
        if not 0 <= number < n_tokens or number in seen:
            problem = "appears twice" if number in seen else f"is outside 0..{n_tokens - 1}"
            raise _damaged(f"the id {str(number)[:40]} of token {text[:80]!r} {problem}")
        seen.add(number)


def token_metadata(vocabulary: Vocabulary, specials: frozenset[str]) -> dict[str, Value]:
    """Return the `tokenizer.ggml.*` keys of the token list.

    specials: texts of tokens with a role in the tokenizer's config; they become control tokens.
    """
    texts = vocabulary.texts
    return {
        "tokenizer.ggml.tokens": _encoded(texts),
        "tokenizer.ggml.scores": numbers(ValueType.FLOAT32, np.full(len(texts), SCORE, np.float32)),
        "tokenizer.ggml.token_type": numbers(ValueType.INT32, _token_types(vocabulary, specials)),
        **({"tokenizer.ggml.merges": _encoded(vocabulary.merges)} if vocabulary.merges else {}),
    }


def _token_types(vocabulary: Vocabulary, specials: frozenset[str]) -> np.ndarray[Any, np.dtype[np.int32]]:
    types = np.full(len(vocabulary.texts), NORMAL, np.int32)
    types[vocabulary.n_base :] = USER_DEFINED
    wanted = specials.union(VISIBLE)
    ids = {text: number for number, text in enumerate(vocabulary.texts) if text in wanted}
    for text in specials & ids.keys():
        types[ids[text]] = CONTROL
    for number, text in enumerate(vocabulary.texts[: vocabulary.n_base]):
        if text.startswith("<0x") and _BYTE_TOKEN.fullmatch(text):
            types[number] = BYTE
    for text in VISIBLE:
        if text in ids:
            types[ids[text]] = USER_DEFINED
    return types


def _read_added(added: Any, base: Mapping[str, int]) -> dict[str, int]:
    if added is None:
        return {}
    if not isinstance(added, list):
        raise _damaged(f"added_tokens is {kind_of(added)}, not a list")
    ids: dict[str, int] = {}
    for token in added:
        content, number = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
        if not isinstance(content, str) or type(number) is not int:
            raise _damaged("an entry of added_tokens has no content or no id")
        if base.get(content, number) != number or ids.get(content, number) != number:
            raise _damaged(f"token {content[:80]!r} has two ids")
        ids[content] = number
    return ids


def _read_merges(model: Mapping[str, Any]) -> list[str]:
    """Return merges as `left right`; spaces within a part become U+0120, as gguf.SpecialVocab writes them."""
    merges = model.get("merges")
    if merges is None:
        return []
    if not isinstance(merges, list):
        raise _damaged(f"model.merges is {kind_of(merges)}, not a list")
    if len(merges) > MAX_MERGES:
        raise _damaged(f"it has {len(merges):,} merges, more than {MAX_MERGES:,}")
    if set(map(type, merges)) <= {str}:
        return merges
    if set(map(type, merges)) - {list} or set(map(len, merges)) - {2}:
        raise _damaged("model.merges holds something else than pairs of texts")
    if set(map(type, chain.from_iterable(merges))) - {str}:
        raise _damaged("model.merges holds something else than pairs of texts")
    joined = list(map(" ".join, merges))
    if "\0".join(joined).count(" ") == len(joined):  # the usual case, found out in one pass
        return joined
    return [f"{_unspaced(left)} {_unspaced(right)}" for left, right in merges]


def _unspaced(part: str) -> str:
    return part.replace(" ", "\u0120")


def _encoded(texts: Sequence[str]) -> Value:
    try:
        return strings(texts)
    except UnicodeEncodeError:
        raise _damaged("a token or merge holds half of a surrogate pair, which is no text") from None


def _damaged(problem: str) -> CheckpointError:
    return CheckpointError(f"tokenizer.json cannot be used: {problem}")
