"""The first load in a child process: what kills llama.cpp there is an error here."""

from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from gemma4_quant.conversion import convert
from gemma4_quant.errors import RunError
from gemma4_quant.formats.gguf_header import encode_header
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.limited_process import Limits
from gemma4_quant.metadata import Value, uint32
from gemma4_quant.runner import trial


def try_loading(path: Path) -> None:
    trial.refuse_what_kills(read_gguf(path))


def with_value(source: Path, target: Path, key: str, value: Value) -> Path:
    """Copy a GGUF file with another value of the same size in its place."""
    old = read_gguf(source).metadata[key]
    name = key.encode()
    content = source.read_bytes()
    at = content.index(name) + len(name)
    assert content[at : at + len(old.encoded())] == old.encoded()
    target.write_bytes(content[:at] + value.encoded() + content[at + len(old.encoded()) :])
    return target


def test_sound_models_pass_and_are_not_tried_twice(
    example_bf16: Path, moe_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_loading(example_bf16)
    try_loading(moe_bf16)
    monkeypatch.setattr(trial, "LimitedProcess", None)
    try_loading(example_bf16)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("gemma4.block_count", uint32(0), "GGML_ASSERT"),
        ("gemma4.block_count", uint32(4000), "LLAMA_MAX_LAYERS"),
        ("gemma4.attention.shared_kv_layers", uint32(6), "GGML_ASSERT"),
    ],
)
def test_an_abort_of_llama_cpp_becomes_an_error_with_its_words(
    example_bf16: Path, tmp_path: Path, key: str, value: Value, reason: str
) -> None:
    path = with_value(example_bf16, tmp_path / "aborts.gguf", key, value)
    with pytest.raises(RunError, match=reason) as caught:
        try_loading(path)
    assert str(path) in str(caught.value)


def test_a_refusal_of_llama_cpp_becomes_an_error_with_its_words(example_bf16: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    path.write_bytes(encode_header(read_gguf(example_bf16).metadata, []))
    with pytest.raises(RunError, match=r"token_embd\.weight"):
        try_loading(path)


def test_a_file_that_changed_is_tried_again(example_bf16: Path, tmp_path: Path) -> None:
    path = tmp_path / "changes.gguf"
    path.write_bytes(example_bf16.read_bytes())
    model = read_gguf(path)
    trial.refuse_what_kills(model)
    path.write_bytes(b"GGUF")
    with pytest.raises(RunError, match="cannot load"):
        trial.refuse_what_kills(model)
    path.unlink()
    with pytest.raises(RunError, match=r"cannot open .*changes\.gguf"):
        trial.refuse_what_kills(model)


def test_a_drafter_is_loaded_without_a_context(tmp_path: Path) -> None:
    path = convert(write_checkpoint(tmp_path / "drafter", "assistant"), tmp_path / "drafter.gguf", "bf16").path
    try_loading(path)


def test_a_load_without_end_is_ended(example_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slow.gguf"
    path.write_bytes(example_bf16.read_bytes())
    monkeypatch.setattr(trial, "LIMITS", Limits(seconds=0.0, memory_bytes=4 << 30))
    with pytest.raises(RunError, match="takes longer than"):
        try_loading(path)
