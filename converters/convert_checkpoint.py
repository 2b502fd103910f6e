"""From an opened checkpoint to the Model that the pipeline encodes and writes."""

from collections.abc import Sequence
from pathlib import Path

from gemma4_quant.converters.authorship import general_metadata
from gemma4_quant.converters.chat_templates import template_metadata
from gemma4_quant.converters.decoders import read_decoder
from gemma4_quant.converters.experts import stack_experts
from gemma4_quant.converters.families import Family
from gemma4_quant.converters.float_types import auto_type
from gemma4_quant.converters.gemma4 import rope_frequencies
from gemma4_quant.converters.lora import merge_adapters
from gemma4_quant.converters.places import bare_name, place_tensors
from gemma4_quant.converters.special_tokens import check_added_tokens, special_metadata, special_texts
from gemma4_quant.converters.text_config import TextConfig
from gemma4_quant.converters.vocabulary import Vocabulary, read_tokenizer, read_vocabulary, token_metadata
from gemma4_quant.errors import CheckpointError, ConfigError
from gemma4_quant.formats.checkpoint import Checkpoint, open_checkpoint
from gemma4_quant.formats.json_input import kind_of
from gemma4_quant.ggml import FileType
from gemma4_quant.metadata import Value, ValueType, boolean, numbers, string, uint32
from gemma4_quant.model import Model

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION (ggml.h): the layout of block formats."""


def load_model(directory: Path, *, model_name: str | None = None, adapters: Sequence[Path] = ()) -> Model:
    """Open the checkpoint in `directory`, with `adapters` merged into it, and convert it.

    See open_with_adapters and convert_checkpoint.
    """
    return convert_checkpoint(open_with_adapters(directory, adapters), model_name=model_name)


def open_with_adapters(directory: Path, adapters: Sequence[Path] = ()) -> Checkpoint:
    """Open the checkpoint in `directory` in the form that conversions expect, with LoRA `adapters` merged into it.

    See open_checkpoint, stack_experts and merge_adapters.
    """
    return merge_adapters(stack_experts(open_checkpoint(directory)), adapters)


def convert_checkpoint(checkpoint: Checkpoint, *, model_name: str | None = None) -> Model:
    """Give the tensors and settings of a Gemma 4 text decoder or drafter their GGUF names; no weight is read.

    model_name: `general.name`, guessed from model card and directory when None.
    Tensors keep the types they are stored in, and `general.file_type` is the one they have; who writes another type
    replaces it. Raises ConfigError for a model that is not Gemma 4 or that llama.cpp would abort on,
    UnmappedTensorsError listing tensors without a place and missing ones, CheckpointError for wrong shapes or a
    tokenizer that does not fit.
    """
    shapes = {bare_name(name): tensor.shape for name, tensor in checkpoint.tensors.items()}
    decoder = read_decoder(checkpoint.config, shapes)
    tokenizer = read_tokenizer(checkpoint)
    vocabulary = read_vocabulary(tokenizer)
    n_tokens = len(vocabulary.texts)
    _check_vocabulary_size(n_tokens, decoder.config)
    placed = place_tensors(checkpoint.tensors, decoder.places(n_tokens), decoder.drops, decoder.architecture)
    tensors = [rope_frequencies(decoder.config), *placed]
    file_type = FileType[auto_type(Model(checkpoint.directory, {}, placed)).name]
    metadata = {
        **general_metadata(checkpoint, tensors, model_name, decoder.architecture),
        **decoder.metadata(uint32(file_type)),
        **_suppressed_tokens(checkpoint, decoder.family, n_tokens),
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
        **_tokenizer_metadata(checkpoint, tokenizer, vocabulary),
    }
    return Model(checkpoint.directory, metadata, tensors)


def _check_vocabulary_size(n_tokens: int, config: TextConfig) -> None:
    sizes = {"vocab_size": config.vocabulary}
    if config.per_layer_width:
        sizes["vocab_size_per_layer_input"] = config.per_layer_vocabulary
    for key, size in sizes.items():
        if size < n_tokens:
            raise CheckpointError(
                f"tokenizer.json has {n_tokens:,} tokens, but {key} in config.json is {size:,}; "
                "take the tokenizer that belongs to this checkpoint"
            )


def _suppressed_tokens(checkpoint: Checkpoint, family: Family, n_tokens: int) -> dict[str, Value]:
    settings = checkpoint.read_json("generation_config.json") if family.has_suppressed_tokens else None
    tokens = (settings or {}).get("suppress_tokens")
    if not tokens:
        return {}
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < n_tokens for token in tokens):
        raise ConfigError(f"generation_config.json: suppress_tokens is {kind_of(tokens)}, not a list of token ids")
    return {"tokenizer.ggml.suppress_tokens": numbers(ValueType.INT32, tokens)}


def _tokenizer_metadata(
    checkpoint: Checkpoint, tokenizer: dict[str, object], vocabulary: Vocabulary
) -> dict[str, Value]:
    settings = checkpoint.read_json("tokenizer_config.json") or {}
    specials = special_texts(settings, checkpoint.read_json("special_tokens_map.json") or {})
    metadata = {
        "tokenizer.ggml.model": string("gemma4"),
        **token_metadata(vocabulary, specials),
        **special_metadata(tokenizer, settings, checkpoint.config, vocabulary.added, len(vocabulary.texts)),
        **template_metadata(checkpoint, settings),
        "tokenizer.ggml.add_space_prefix": boolean(False),
        "tokenizer.ggml.add_bos_token": boolean(True),
    }
    check_added_tokens(metadata)
    return metadata
