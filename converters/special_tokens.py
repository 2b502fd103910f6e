"""Special tokens: which ids have a role, which are added to a prompt, which are control tokens.

The rules are those of gguf.SpecialVocab and of transformers' tokenizer classes, whose results llama.cpp's converter
writes. Sources in order: tokenizer_config.json, the post-processor of tokenizer.json, config.json.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemma4_quant.errors import CheckpointError
from gemma4_quant.formats.json_input import kind_of
from gemma4_quant.metadata import Value, boolean, uint32

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Roles that transformers names in every tokenizer."""

_ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
}
"""Key after `tokenizer.ggml.` for the id of a role; GGUF has none for cls."""

_ADDED = ("bos", "eos", "sep")
"""Roles with a key that tells whether the token is added to a prompt."""

# transformers' GemmaTokenizer takes these when tokenizer_config.json does not name them
_GEMMA_CLASSES = ("GemmaTokenizer", "GemmaTokenizerFast")
_GEMMA_DEFAULTS = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}

_EXTRA_KEYS = ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens")

Json = Mapping[str, Any]


def special_texts(tokenizer_config: Json, special_tokens_map: Json) -> frozenset[str]:
    """Return the texts of all tokens with a role, named or extra, as transformers' `all_special_tokens`.

    special_tokens_map: the legacy file beside tokenizer_config.json, read only when that has no
    added_tokens_decoder; empty when there is none.
    """
    settings = dict(tokenizer_config)
    if "added_tokens_decoder" not in settings:
        settings.update(special_tokens_map)
    texts: set[str | None] = set()
    if settings.get("tokenizer_class") in _GEMMA_CLASSES:
        texts.update(text for role, text in _GEMMA_DEFAULTS.items() if settings.get(f"{role}_token") is None)
    for key, value in settings.items():
        if key.endswith("_token"):
            texts.add(token_text(value))
        elif key in _EXTRA_KEYS and isinstance(value, (list, dict)):
            texts.update(map(token_text, value.values() if isinstance(value, dict) else value))
    return frozenset(text for text in texts if text is not None)


def token_text(token: object) -> str | None:
    """Return the text of a token written as a string or as an object with `content`; None for others."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def special_metadata(
    tokenizer: Json, tokenizer_config: Json, config: Json, added: Mapping[str, int], n_tokens: int
) -> dict[str, Value]:
    """Return the `tokenizer.ggml.*` keys of special ids and of what is added to a prompt.

    added: ids of tokenizer.json's added tokens by text. Raises CheckpointError for an id that is not a token.
    """
    texts: dict[str, str | None] = {role: token_text(tokenizer_config.get(f"{role}_token")) for role in ROLES}
    texts["bos"] = texts["bos"] or texts["cls"]
    texts["eos"] = texts["eos"] or texts["sep"]
    is_added = _read_post_processor(tokenizer.get("post_processor"), texts)
    for role in texts:
        flag = tokenizer_config.get(f"add_{role}_token")
        if isinstance(flag, bool):
            is_added.setdefault(role, flag)
    ids = {role: added[text] for role, text in texts.items() if text is not None and text in added}
    for role, number in _config_ids(config, tuple(texts)):
        ids.setdefault(role, number)
    for role, number in ids.items():
        if not 0 <= number < n_tokens:
            raise CheckpointError(f"config.json: {role}_token_id is {number}, but there are {n_tokens} tokens")
    return {
        **{f"tokenizer.ggml.{_ID_KEYS[role]}": uint32(ids[role]) for role in ids if role in _ID_KEYS},
        **{f"tokenizer.ggml.add_{role}_token": boolean(is_added[role]) for role in is_added if role in _ADDED},
    }


def check_added_tokens(metadata: Mapping[str, Value]) -> None:
    """Raise CheckpointError when a token that llama.cpp adds to every text is missing: it would abort then.

    metadata: with the keys of special_metadata. gemma4's tokenizer begins with BOS whatever the flags say
    (llama-vocab.cpp).
    """
    for role in ("bos", "eos", "sep"):
        flag = metadata.get(f"tokenizer.ggml.add_{role}_token")
        is_added = role == "bos" or (flag is not None and flag.decode() is True)
        if is_added and f"tokenizer.ggml.{_ID_KEYS[role]}" not in metadata:
            raise CheckpointError(
                f"no token of tokenizer.json has the role {role}, and llama.cpp adds that token to every text; "
                "take tokenizer_config.json from the checkpoint this one was made from"
            )


def _config_ids(config: Json, roles: Sequence[str]) -> Iterator[tuple[str, int]]:
    inner = config.get("text_config")
    for role in roles:
        number = config.get(f"{role}_token_id")
        if number is None and isinstance(inner, dict):
            number = inner.get(f"{role}_token_id")
        if type(number) is int:
            yield role, number


def _read_post_processor(processor: Any, texts: dict[str, str | None]) -> dict[str, bool]:
    """Return which special tokens a TemplateProcessing adds; renames roles in `texts` where it uses other tokens."""
    is_added: dict[str, bool] = {}
    if processor is None:
        return is_added
    if not isinstance(processor, dict):
        raise CheckpointError(f"tokenizer.json: post_processor is {kind_of(processor)}, not an object")
    steps = processor.get("processors", [processor])
    for step in steps if isinstance(steps, list) else []:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "ByteLevel":
            is_added.setdefault("bos", False)
            is_added.setdefault("eos", False)
        elif kind == "TemplateProcessing":
            _read_template(step, texts, is_added)
    return is_added


def _read_template(step: Json, texts: dict[str, str | None], is_added: dict[str, bool]) -> None:
    single = step.get("single")
    single = single if isinstance(single, list) else []
    first = _special_id(single[0]) if len(single) > 1 else None
    last = _special_id(single[-1]) if len(single) > 1 else None
    if first is not None:
        texts["bos"] = texts["bos"] or first
        texts["cls"] = texts["cls"] or first
        is_added["bos"] = first in (texts["bos"], texts["cls"])
    if last is not None:
        if last != texts["eos"] and texts["eos"] is not None:
            texts["eot"] = texts["eos"]
        texts["eos"] = last
        is_added["eos"] = True
    pair = step.get("pair")
    if isinstance(pair, list) and pair:
        separator = _separator(pair, first, last)
        if separator is not None:
            is_added["sep"] = separator in (texts["sep"], texts["eos"]) and last is None


def _separator(pair: Sequence[Any], first: str | None, last: str | None) -> str | None:
    """Return the special token between the two texts of a pair template, None when there is none."""
    start = 1 if first is not None and _special_id(pair[0]) == first else 0
    stop = len(pair) - (1 if last is not None and _special_id(pair[-1]) == last else 0)
    between = pair[start:stop][1:-1]
    return _special_id(between[0]) if between else None


def _special_id(piece: Any) -> str | None:
    special = piece.get("SpecialToken") if isinstance(piece, dict) else None
    name = special.get("id") if isinstance(special, dict) else None
    return name if isinstance(name, str) and name else None
