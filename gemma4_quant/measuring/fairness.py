"""Whether models can be compared: the same tokens, template, architecture, shape, and the same training of weights.

A divergence between models that differ in one of these measures the difference, not a quantization.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma4_quant.errors import MismatchError
from gemma4_quant.measuring.model_facts import is_named_after_training
from gemma4_quant.metadata import Metadata, Value, ValueType, get_string

logger = logging.getLogger(__name__)

_ARCHITECTURE = "general.architecture"
_TEMPLATE = "tokenizer.chat_template"
_VOCABULARY = ("tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges")
_SPECIAL = (
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
)
_SHAPE = (
    "block_count",
    "embedding_length",
    "embedding_length_per_layer_input",
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_count",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "attention.shared_kv_layers",
    "attention.sliding_window",
    "final_logit_softcapping",
)
_PADDED = "gemma4_quant.padded."
"""Keys of files whose feed-forward width was filled up with zeros: the same function, in another shape."""


@dataclass(frozen=True)
class Identity:
    """What must agree between a model and its reference.

    name: of the file. facts: values of metadata by key, texts and lists of them as SHA-256; shapes without the
    architecture in front. padded: shapes that were filled up with zeros. is_qat: whether it is named
    after quantization-aware training.
    """

    name: str
    facts: dict[str, str]
    padded: tuple[str, ...]
    is_qat: bool


def identity_of(path: Path, metadata: Metadata) -> Identity:
    """Return what must agree with others of a model."""
    prefix = get_string(metadata, _ARCHITECTURE)
    keys = {key: key for key in (*_VOCABULARY, *_SPECIAL, _TEMPLATE, _ARCHITECTURE)}
    keys.update({suffix: f"{prefix}.{suffix}" for suffix in _SHAPE})
    return Identity(
        name=path.name,
        facts={name: _fact(metadata[key]) for name, key in keys.items() if key in metadata},
        padded=tuple(suffix for suffix in _SHAPE if _PADDED + suffix in metadata),
        is_qat=is_named_after_training(path, metadata),
    )


def _fact(value: Value) -> str:
    if value.type is ValueType.STRING or value.item is ValueType.STRING:
        return hashlib.sha256(value.encoded()).hexdigest()
    return str(value.decode())  # numbers of different widths are the same numbers


def refuse_unfair(reference: Identity, models: Sequence[Identity], *, force: bool) -> tuple[str, ...]:
    """Raise MismatchError when models cannot be compared with the reference.

    force: report mismatches as warnings and go on, and return them. Other tokens cannot be forced: predictions of
    different vocabularies have no divergence.
    """
    impossible = [
        f"{model.name} and {reference.name} differ in {key}"
        for model in models
        for key in _VOCABULARY
        if model.facts.get(key) != reference.facts.get(key)
    ]
    if impossible:
        raise MismatchError(
            f"{'; '.join(impossible)}: their predictions cannot be compared; give a reference with the same tokens"
        )
    found = [text for model in models for text in mismatches(reference, model)]
    if found and not force:
        raise MismatchError(f"{'; '.join(found)}: give the file it was made from, or add --force to compare anyway")
    for text in found:
        logger.warning("%s; compared all the same (--force)", text)
    return tuple(found)


def mismatches(reference: Identity, model: Identity) -> Iterator[str]:
    """Yield in what a model differs from its reference, except in its tokens, one sentence each."""
    names = f"{model.name} and {reference.name}"
    padded = {*model.padded, *reference.padded}
    for key in (*_SPECIAL, _TEMPLATE, _ARCHITECTURE, *_SHAPE):
        ours, theirs = model.facts.get(key), reference.facts.get(key)
        if ours == theirs or key in padded:
            continue
        if key == _TEMPLATE:
            yield f"{names} have different chat templates"
        elif key == _ARCHITECTURE:
            yield f"{names} have different architectures"
        else:
            yield f"{names} differ in {key} ({_shown(ours)} and {_shown(theirs)})"
    if model.is_qat != reference.is_qat:
        trained = model if model.is_qat else reference
        yield f"{names} have differently trained weights: only {trained.name} is quantization-aware"


def _shown(fact: str | None) -> str:
    return "nothing" if fact is None else fact[:40]
