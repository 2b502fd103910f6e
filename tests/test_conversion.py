"""Converted files against llama.cpp's converter (tests/golden) and transformers' logits."""

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import DIRECTORY_NAMES, DRAFTERS, KINDS, write_checkpoint
from gguf_facts import facts_of

import gemma4_quant as gq
from gemma4_quant.errors import UnsupportedTypeError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.metadata import ValueType

GOLDEN = Path(__file__).parent / "golden"
EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-gemma4-e"


@pytest.mark.parametrize("out_type", ["bf16", "f16", "f32", "q8_0"])
def test_the_example_converts_as_llama_cpp_converts_it(out_type: str, tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / f"convert-{out_type}.json").read_text())
    found = facts_of(gq.convert(EXAMPLE, tmp_path / "out.gguf", out_type).path)
    assert found["tensors"] == expected["tensors"]
    assert list(found["metadata"]) == list(expected["metadata"])
    assert found["metadata"] == expected["metadata"]


@pytest.mark.parametrize("out_type", ["bf16", "q8_0"])
@pytest.mark.parametrize("kind", [*KINDS, *DRAFTERS])
def test_random_checkpoints_convert_as_llama_cpp_converts_them(kind: str, out_type: str, tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / f"convert-{kind}-{out_type}.json").read_text())
    directory = tmp_path / DIRECTORY_NAMES[kind]
    write_checkpoint(directory, kind=kind)
    found = facts_of(gq.convert(directory, tmp_path / "out.gguf", out_type).path)
    assert found["tensors"] == expected["tensors"]
    assert found["metadata"] == expected["metadata"]


def test_auto_keeps_the_type_of_the_checkpoint(tmp_path: Path) -> None:
    assert gq.convert(EXAMPLE, tmp_path / "{ftype}.gguf").path.name == "bf16.gguf"


def test_the_default_name_follows_the_naming_convention(tmp_path: Path) -> None:
    assert gq.convert(EXAMPLE, tmp_path).path.name == "Tiny-Gemma4-E-6.3M-BF16.gguf"


def test_a_block_type_is_referred_to_quantize(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTypeError, match="quantize"):
        gq.convert(EXAMPLE, tmp_path / "out.gguf", "q4_k_m")


def test_metadata_of_the_example_has_no_surprising_types(example_bf16: Path) -> None:
    metadata = read_gguf(example_bf16).metadata
    assert metadata["gemma4.feed_forward_length"].item is ValueType.INT32
    assert np.array_equal(metadata["gemma4.feed_forward_length"].array(), [512] * 3 + [1024] * 3)
