"""Gemma 4's own vocabulary, rebuilt from tests/golden: 262,144 tokens and the 514,906 merges that follow from them.

The released vocabulary was turned from SentencePiece into BPE by transformers, which makes a merge of every way to
cut a token in two tokens (convert_slow_tokenizer.py, generate_merges). So the tokens and their SentencePiece scores
are all there is to store; tests compare the result with hashes of llama.cpp's file.
"""

import functools
import json
import lzma
from math import prod
from pathlib import Path
from typing import Any

from checkpoints import config, random_weights, tensor_shapes, text_config, write_safetensors

GOLDEN = Path(__file__).parent / "golden"

FIRST_LEARNT = 494
"""Tokens before this one were given to SentencePiece, with score 0; it learnt the others, with falling scores."""

GIVEN_LATE = range(255_968, 262_144)
"""The rest of the given ones: runs of tabs, and what was reserved."""

ROLES = {
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "boi_token": "<|image>",
    "bos_token": "<bos>",
    "eoa_token": "<audio|>",
    "eoc_token": "<channel|>",
    "eoi_token": "<image|>",
    "eos_token": "<eos>",
    "eot_token": "<turn|>",
    "escape_token": '<|"|>',
    "etc_token": "<tool_call|>",
    "etd_token": "<tool|>",
    "etr_token": "<tool_response|>",
    "image_token": "<|image|>",
    "mask_token": "<mask>",
    "pad_token": "<pad>",
    "soc_token": "<|channel>",
    "sot_token": "<|turn>",
    "stc_token": "<|tool_call>",
    "std_token": "<|tool>",
    "str_token": "<|tool_response>",
    "think_token": "<|think|>",
    "unk_token": "<unk>",
}
EXTRA = ["<|video|>"]


@functools.cache
def facts() -> dict[str, Any]:
    """Return what was recorded of llama.cpp's file (recording/record_vocabulary.py)."""
    recorded: dict[str, Any] = json.loads((GOLDEN / "gemma-4-vocabulary.json").read_text())
    return recorded


@functools.cache
def tokens() -> tuple[str, ...]:
    """Return the texts of all tokens by id."""
    return tuple(json.loads(lzma.decompress((GOLDEN / "gemma-4-tokens.json.xz").read_bytes())))


@functools.cache
def merges(texts: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the merges of a vocabulary: every way to make a token of two others, those of high scores first."""
    ids = {text: number for number, text in enumerate(texts)}
    found = []
    for number, text in enumerate(texts):
        score = 0 if number < FIRST_LEARNT or number in GIVEN_LATE else FIRST_LEARNT - number
        cuts = [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in ids and text[at:] in ids]
        cuts.sort(key=lambda cut: (ids[cut[0]], ids[cut[1]]))
        found += [(score, len(left), len(right), (left, right)) for left, right in cuts]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [merge for *_, merge in found]


def write_tokenizer(directory: Path, indent: int | None = None) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja as a released checkpoint has them.

    indent: of tokenizer.json; 2 makes it the 32 MB that it is released with, and takes longer to write.
    """
    texts = tokens()
    ids = {text: number for number, text in enumerate(texts)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = sorted((ids[text], text) for text in [*ROLES.values(), *EXTRA])
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **flags} for number, text in added],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges(texts),
        },
    }
    settings = {
        **ROLES,
        "extra_special_tokens": EXTRA,
        "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "GemmaTokenizer",
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, indent=indent))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (directory / "chat_template.jinja").write_text(facts()["chat_template"])


def write_real_vocabulary_checkpoint(directory: Path, *, hidden: int = 32, indent: int | None = None) -> Path:
    """Write a small dense checkpoint with the real tokenizer, its embeddings all zero, and return its directory.

    indent: see write_tokenizer.
    """
    directory.mkdir(parents=True, exist_ok=True)
    n_tokens = len(tokens())
    text = text_config("dense", {"vocab_size": n_tokens, "hidden_size": hidden})
    (directory / "config.json").write_text(json.dumps(config("dense", text), indent=2))
    write_tokenizer(directory, indent)
    write_safetensors(
        directory / "model.safetensors",
        {
            name: ("BF16", shape, bytes(2 * prod(shape)) if shape[0] == n_tokens else random_weights(name, shape, 0))
            for name, shape in tensor_shapes("dense", text)
        },
    )
    return directory
