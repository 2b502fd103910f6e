"""Which models may be compared: what differs is named, and only other tokens cannot be forced."""

from dataclasses import replace
from pathlib import Path

import pytest

from gemma4_quant.benchmark import BenchOptions, bench
from gemma4_quant.errors import MismatchError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.measuring.fairness import identity_of, mismatches, refuse_unfair
from gemma4_quant.measuring.model_facts import is_named_after_training, is_trained_for_grid
from gemma4_quant.measuring.scored_text import Domain, WindowOptions
from gemma4_quant.measuring.scoring import ScoringOptions
from gemma4_quant.metadata import string, uint32
from gemma4_quant.texts.documents import Document


@pytest.fixture(scope="module")
def metadata(example_bf16):
    return dict(read_gguf(example_bf16).metadata)


def identity(metadata, name="model.gguf", **changes):
    changed = {**metadata, **{key.replace("__", "."): value for key, value in changes.items()}}
    return identity_of(Path(name), {key: value for key, value in changed.items() if value is not None})


def found(metadata, **changes):
    return list(mismatches(identity(metadata, "base.gguf"), identity(metadata, **changes)))


def test_a_model_agrees_with_itself_and_with_its_quantization(metadata):
    assert found(metadata) == []
    assert found(metadata, general__file_type=uint32(15), general__name=string("other")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gemma4__block_count": uint32(3)}, "model.gguf and base.gguf differ in block_count (3 and "),
        ({"gemma4__embedding_length": uint32(8)}, "differ in embedding_length (8 and "),
        ({"gemma4__attention__sliding_window": None}, "differ in attention.sliding_window (nothing and "),
        ({"tokenizer__chat_template": string("{{ x }}")}, "have different chat templates"),
        ({"tokenizer__chat_template": None}, "have different chat templates"),
        ({"tokenizer__ggml__bos_token_id": uint32(5)}, "differ in tokenizer.ggml.bos_token_id (5 and "),
        ({"general__architecture": string("gemma4-assistant")}, "have different architectures"),
        ({"name": "gemma-4-qat.gguf"}, "only gemma-4-qat.gguf is quantization-aware"),
    ],
)
def test_each_difference_is_named(metadata, changes, message):
    assert any(message in text for text in found(metadata, **changes))


def test_padded_widths_are_the_same_function(metadata):
    wider = {"gemma4__feed_forward_length": uint32(4096)}
    assert found(metadata, **wider) != []
    assert found(metadata, **wider, gemma4_quant__padded__feed_forward_length=string("704 → 4096")) == []


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("gemma-4-E2B-it-qat-q4_0.gguf", {}, True),
        ("model.gguf", {"general.name": string("Gemma 4 12B It Qat")}, True),
        ("model.gguf", {"gemma4_quant.qat.tensors": uint32(9)}, True),
        ("aqatic.gguf", {"general.name": string("Qatar")}, False),
        ("model.gguf", {"general.name": uint32(4)}, False),
    ],
)
def test_quantization_aware_training_is_told_by_names_and_our_own_keys(name, keys, expected):
    assert is_trained_for_grid(Path(name), keys) is expected
    assert is_named_after_training(Path(name), keys) is (expected and "gemma4_quant.qat.tensors" not in keys)


def test_all_differences_are_in_one_message_and_can_be_forced(metadata, caplog):
    base = identity(metadata, "base.gguf")
    others = [identity(metadata, "a.gguf", gemma4__block_count=uint32(3)), identity(metadata, "b-qat.gguf")]
    with pytest.raises(MismatchError, match=r"a\.gguf .*block_count.*; b-qat\.gguf .*add --force"):
        refuse_unfair(base, others, force=False)
    assert len(refuse_unfair(base, others, force=True)) == 2
    assert "compared all the same (--force)" in caplog.text


def test_other_tokens_cannot_be_forced(metadata):
    tokens = metadata["tokenizer.ggml.tokens"]
    other = identity(metadata, tokenizer__ggml__tokens=replace(tokens, data=tokens.data.replace(b"the", b"eth", 1)))
    for force in (True, False):
        with pytest.raises(MismatchError, match=r"differ in tokenizer\.ggml\.tokens: their predictions cannot be"):
            refuse_unfair(identity(metadata), [other], force=force)


def test_a_forced_comparison_is_recorded(example_bf16, example_f32, tmp_path):
    renamed = tmp_path / "example-qat.gguf"
    renamed.symlink_to(example_bf16)
    text = Domain("a", "a", (Document("a", "In the beginning was the word. " * 9),))
    options = BenchOptions(speed=None, windows=WindowOptions(64, 2))
    with pytest.raises(MismatchError, match=r"only example-qat\.gguf is quantization-aware"):
        bench([renamed], reference=example_f32, texts=[text], options=options)
    forced = replace(options, scoring=ScoringOptions(force=True))
    result = bench([renamed], reference=example_f32, texts=[text], options=forced)
    assert len(result.reference.forced) == 1
    assert result.models[0].file.is_qat
