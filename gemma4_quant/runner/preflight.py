"""Refusing metadata on which llama.cpp aborts, taking the process along, instead of returning an error.

The limits are those of its assertions, and of exceptions that it does not catch: llama-model.cpp,
llama-vocab.cpp, models/gemma4.cpp and ggml.c of llama.cpp.
"""

import math
import struct
from collections.abc import Iterator

from gemma4_quant.errors import GgufError
from gemma4_quant.metadata import Metadata, Value, ValueType, get_int, get_string
from gemma4_quant.model import Model
from gemma4_quant.runner.layout_limits import refuse_impossible_layouts

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS (llama-hparams.h)
_MAX_WINDOW = 1 << 24  # far above any context
_TOKENS = "tokenizer.ggml.tokens"


def refuse_what_aborts(model: Model) -> None:
    """Raise GgufError, naming file and key, for metadata that llama.cpp would abort on; absent keys pass."""
    try:
        prefix = get_string(model.metadata, "general.architecture")
        n_layers = _check_layers(model.metadata, prefix)
        if n_layers is not None:
            refuse_impossible_layouts(model, prefix, n_layers)
        _check_epsilon(model.metadata, f"{prefix}.attention.layer_norm_rms_epsilon")
        _check_window(model.metadata, f"{prefix}.attention.sliding_window")
        _check_rope(model.metadata, prefix)
        _check_vocabulary(model.metadata)
    except GgufError as error:
        raise GgufError(f"{model.path}: {error}; llama.cpp cannot load this file, convert the model again") from error


def _check_layers(metadata: Metadata, prefix: str) -> int | None:
    """Return the number of layers; None when the file does not say it."""
    key = f"{prefix}.block_count"
    if key not in metadata:
        return None
    n_layers = get_int(metadata, key)
    if not 1 <= n_layers <= _MAX_LAYERS:
        raise GgufError(f"{key} is {n_layers}, not 1 to {_MAX_LAYERS}")
    # llama_model::create_memory asserts it for gemma4, not for assistants, which may share all of their layers.
    if prefix != "gemma4":
        return n_layers
    shared_key = f"{prefix}.attention.shared_kv_layers"
    n_shared = get_int(metadata, shared_key, 0)
    if n_shared > n_layers - 2:
        raise GgufError(f"{shared_key} is {n_shared} and {key} {n_layers}; two layers must have their own KV cache")
    return n_layers


def _check_epsilon(metadata: Metadata, key: str) -> None:
    if key not in metadata:
        return
    epsilon = metadata[key].decode()
    if not isinstance(epsilon, float) or not math.isfinite(epsilon) or epsilon < 0:
        raise GgufError(f"{key} is {epsilon}, not a non-negative number")


def _check_window(metadata: Metadata, key: str) -> None:
    # llama_kv_cache reserves four bytes for each position of the window, for every batch
    if get_int(metadata, key, 0) > _MAX_WINDOW:
        raise GgufError(f"{key} is {get_int(metadata, key)}, more than {_MAX_WINDOW}")


def _check_rope(metadata: Metadata, prefix: str) -> None:
    """Check how many values of a head rotate: zero never ends. Defaults are those of llama_model::load_hparams."""
    n_heads = max(1, _first_int(metadata, f"{prefix}.attention.head_count", 1))
    length = get_int(metadata, f"{prefix}.embedding_length", 0) // n_heads
    n_rotated: int | None = None
    for suffix in ("", "_swa"):
        rope_key, length_key = f"{prefix}.rope.dimension_count{suffix}", f"{prefix}.attention.key_length{suffix}"
        length = get_int(metadata, length_key, length)
        n_rotated = get_int(metadata, rope_key, length if n_rotated is None else n_rotated)
        if rope_key not in metadata and length_key not in metadata:
            continue
        if n_rotated < 2 or n_rotated % 2:
            raise GgufError(f"{rope_key} is {n_rotated}, not an even number above zero")
        if n_rotated > length:
            raise GgufError(f"{rope_key} is {n_rotated}, more than {length_key}, {length}")


def _first_int(metadata: Metadata, key: str, default: int) -> int:
    """Return a number, or the first of an array that has one for each layer."""
    value = metadata.get(key)
    if value is None or value.item is None:
        return get_int(metadata, key, default)
    numbers = value.array()
    return int(numbers[0]) if len(numbers) else default


def _check_vocabulary(metadata: Metadata) -> None:
    if _TOKENS not in metadata:
        return
    tokens = metadata[_TOKENS]
    if tokens.item is not ValueType.STRING:
        raise GgufError(f"{_TOKENS} is {tokens.describe_type()}, not an array of strings")
    _check_texts(tokens)
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        if key in metadata and metadata[key].count != tokens.count:
            raise GgufError(f"{key} is {metadata[key].describe_type()}, for {tokens.count} tokens")
    for key in metadata:
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            token = get_int(metadata, key)
            if not 0 <= token < tokens.count:
                raise GgufError(f"{key} is {token}, outside the {tokens.count} tokens")
    _check_added_tokens(metadata)


def _check_added_tokens(metadata: Metadata) -> None:
    """A token that every text begins or ends with must be there; gemma4's tokenizer always begins with BOS."""
    always = {"bos"} if get_string(metadata, "tokenizer.ggml.model", "") == "gemma4" else set()
    for role in ("bos", "eos"):
        flag = metadata.get(f"tokenizer.ggml.add_{role}_token")
        is_added = role in always or (flag is not None and flag.decode() is True)
        if is_added and f"tokenizer.ggml.{role}_token_id" not in metadata:
            raise GgufError(f"tokenizer.ggml.{role}_token_id is missing, though that token is added to every text")


def _check_texts(tokens: Value) -> None:
    seen: set[str] = set()
    for i, raw in enumerate(_string_bytes(tokens)):
        try:
            # llama.cpp gives tokens without text such a name.
            text = raw.decode() or f"[EMPTY_{i}]"
        except UnicodeDecodeError as error:
            raise GgufError(f"{_TOKENS}[{i}] is not UTF-8 text") from error
        if text in seen:
            raise GgufError(f"{_TOKENS}[{i}], {text!r}, occurs twice")
        seen.add(text)


def _string_bytes(value: Value) -> Iterator[bytes]:
    length_at = struct.Struct("<Q").unpack_from
    at = 0
    for _ in range(value.count):
        (length,) = length_at(value.data, at)
        yield value.data[at + 8 : at + 8 + length]
        at += 8 + length
