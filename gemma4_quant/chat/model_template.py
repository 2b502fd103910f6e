"""What a model's metadata say about its chat template."""

from typing import Any

from gemma4_quant.metadata import Metadata, get_string

TEMPLATE = "tokenizer.chat_template"
TOKENS = "tokenizer.ggml.tokens"


def template_text(metadata: Metadata) -> str:
    """Return a model's template, empty when it has none; raises GgufError when it is no text."""
    text = get_string(metadata, TEMPLATE, "")
    return text if text.strip() else ""


def special_texts(metadata: Metadata) -> dict[str, Any]:
    """Return `bos_token` and `eos_token` as a template is given them, as far as the metadata say which they are."""
    texts = metadata[TOKENS].decode() if TOKENS in metadata else []
    tokens = {}
    for role in ("bos", "eos"):
        number = metadata[key].decode() if (key := f"tokenizer.ggml.{role}_token_id") in metadata else None
        if isinstance(number, int) and 0 <= number < len(texts):
            tokens[f"{role}_token"] = texts[number]
    return tokens
