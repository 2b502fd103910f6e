"""Metadata that llama.cpp aborts on is refused before it sees the file."""

import math

import pytest

from gemma4_quant.errors import GgufError
from gemma4_quant.formats.gguf_header import encode_header
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.metadata import ValueType, boolean, float32, numbers, string, strings, uint32
from gemma4_quant.runner.preflight import refuse_what_aborts
from gemma4_quant.runner.weights import LoadedModel

EPSILON = "gemma4.attention.layer_norm_rms_epsilon"
TOKENS = "tokenizer.ggml.tokens"
N_TOKENS = 2048
TEXTS = [f"token {i}".encode() for i in range(N_TOKENS)]


@pytest.fixture(scope="module")
def metadata(example_bf16):
    return read_gguf(example_bf16).metadata


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gemma4.block_count", uint32(0)),
        ("gemma4.block_count", uint32(1)),
        ("gemma4.block_count", uint32(9999)),
        ("gemma4.attention.shared_kv_layers", uint32(5)),
        (EPSILON, float32(-1e-6)),
        (EPSILON, float32(math.nan)),
        (EPSILON, float32(math.inf)),
        ("gemma4.attention.sliding_window", uint32(2**31)),
        ("gemma4.rope.dimension_count", uint32(0)),
        ("gemma4.rope.dimension_count", uint32(127)),
        ("gemma4.rope.dimension_count", uint32(130)),
        ("gemma4.rope.dimension_count_swa", uint32(0)),
        ("gemma4.rope.dimension_count_swa", uint32(63)),
        ("gemma4.rope.dimension_count_swa", uint32(66)),
        ("tokenizer.ggml.bos_token_id", uint32(N_TOKENS)),
        ("tokenizer.ggml.padding_token_id", uint32(1_000_000)),
        (TOKENS, strings([*TEXTS[:-1], b"\xff"])),
        (TOKENS, strings([*TEXTS[:-1], TEXTS[7]])),
        ("tokenizer.ggml.scores", numbers(ValueType.FLOAT32, [0.0] * (N_TOKENS - 1))),
        ("tokenizer.ggml.token_type", numbers(ValueType.INT32, [1] * (N_TOKENS + 1))),
    ],
)
def test_one_wrong_key_is_refused_by_name_before_loading(metadata, tmp_path, key, value):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(encode_header({**metadata, key: value}, []))
    with pytest.raises(GgufError) as caught:
        LoadedModel(path)
    message = str(caught.value)
    assert str(path) in message
    assert key in message
    assert "\n" not in message


def test_the_width_of_global_heads_rotates_in_local_ones_too_unless_they_say_otherwise(metadata, tmp_path):
    path = tmp_path / "wide.gguf"
    path.write_bytes(encode_header({k: v for k, v in metadata.items() if k != "gemma4.rope.dimension_count_swa"}, []))
    with pytest.raises(GgufError, match=r"dimension_count_swa is 128, more than .*key_length_swa, 64"):
        refuse_what_aborts(read_gguf(path))


def test_tokens_that_are_added_to_every_text_must_be_there(metadata, tmp_path):
    path = tmp_path / "no-bos.gguf"
    path.write_bytes(encode_header({k: v for k, v in metadata.items() if k != "tokenizer.ggml.bos_token_id"}, []))
    with pytest.raises(GgufError, match=r"bos_token_id is missing"):
        refuse_what_aborts(read_gguf(path))
    changed = {**metadata, "tokenizer.ggml.add_eos_token": boolean(True)}
    path.write_bytes(encode_header({k: v for k, v in changed.items() if k != "tokenizer.ggml.eos_token_id"}, []))
    with pytest.raises(GgufError, match=r"eos_token_id is missing"):
        refuse_what_aborts(read_gguf(path))


def test_a_sound_model_and_tokens_without_text_pass(example_bf16, metadata, tmp_path):
    refuse_what_aborts(read_gguf(example_bf16))
    path = tmp_path / "empty.gguf"
    path.write_bytes(encode_header({**metadata, TOKENS: strings([*TEXTS[:-2], b"", b""])}, []))
    refuse_what_aborts(read_gguf(path))


def test_an_assistant_may_share_all_of_its_layers(metadata, tmp_path):
    changed = {key.replace("gemma4.", "gemma4-assistant."): value for key, value in metadata.items()} | {
        "general.architecture": string("gemma4-assistant"),
        "gemma4-assistant.attention.shared_kv_layers": metadata["gemma4.block_count"],
    }
    path = tmp_path / "assistant.gguf"
    path.write_bytes(encode_header(changed, []))
    refuse_what_aborts(read_gguf(path))
