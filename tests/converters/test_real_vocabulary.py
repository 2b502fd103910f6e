"""Gemma 4's real vocabulary, 262,144 tokens and 514,906 merges: converted as llama.cpp's file of it, and read back.

Expected values are hashes and tokenizer vectors of ggml-vocab-gemma-4.gguf, which llama.cpp ships for its own tests.
"""

import hashlib
from pathlib import Path

import pytest
from real_vocabulary import facts, write_real_vocabulary_checkpoint

from gemma4_quant.conversion import convert
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.inspection import inspect
from gemma4_quant.metadata import Value
from gemma4_quant.runner.weights import LoadedModel


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real-vocabulary")
    return convert(write_real_vocabulary_checkpoint(root / "model"), root / "model.gguf", "bf16").path


def test_every_value_of_the_tokenizer_is_that_of_llama_cpps_file(converted: Path) -> None:
    metadata = read_gguf(converted).metadata
    ours = {
        key: {"type": value.describe_type(), "sha256": hashlib.sha256(value.data).hexdigest()}
        for key, value in metadata.items()
        if key.startswith("tokenizer.")
    }
    assert ours == facts()["values"]
    assert list(ours) == list(facts()["values"])


def test_llama_cpp_makes_the_recorded_tokens_of_every_vector(converted: Path) -> None:
    vectors = facts()["vectors"]
    assert len(vectors) == 46
    with LoadedModel(converted) as model:
        assert (model.n_vocab, model.bos, model.add_bos) == (262_144, 2, True)
        found = [model.tokenise(vector["text"], add_special=False).tolist() for vector in vectors]
    assert found == [vector["tokens"] for vector in vectors]


def test_inspecting_decodes_no_token(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = Value.decode

    def note(value: Value) -> object:
        decoded.append(value.describe_type())
        return decode(value)

    monkeypatch.setattr(Value, "decode", note)
    metadata = inspect(converted).metadata
    assert metadata["tokenizer.ggml.tokens"] == "string[262144]"
    assert metadata["tokenizer.ggml.merges"] == "string[514906]"
    assert not [kind for kind in decoded if kind.startswith("string[")]
