"""What a quantized file says it was made from."""

import hashlib
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from places import GOLDEN

import gemma4_quant as gq
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.metadata import string
from gemma4_quant.model import Model
from gemma4_quant.recipes.provenance import fingerprint

IMPORTANCE = GOLDEN / "imatrix.gguf"


def test_a_file_names_its_source_importance_and_version(example_bf16: Path, tmp_path: Path) -> None:
    path = gq.quantize(example_bf16, tmp_path / "out.gguf", FileType.Q8_0, importance=IMPORTANCE).path
    fields = gguf.GGUFReader(path).fields
    found = {key.removeprefix("gemma4_quant."): fields[key].contents() for key in fields if key.startswith("gemma4_")}
    assert found.pop("recipe").splitlines()[-1].startswith("why = ")
    assert found == {
        "version": gq.__version__,
        "source.name": example_bf16.name,
        "source.fingerprint": fingerprint(read_gguf(example_bf16)),
        "imatrix.sha256": hashlib.sha256(IMPORTANCE.read_bytes()).hexdigest(),
    }


def test_quantizing_again_names_the_new_source_only(example_bf16: Path, tmp_path: Path) -> None:
    first = gq.quantize(example_bf16, tmp_path / "first.gguf", FileType.Q8_0, importance=IMPORTANCE).path
    second = gq.quantize(first, tmp_path / "second.gguf", FileType.Q4_0, allow_requantize=True).path
    fields = gguf.GGUFReader(second).fields
    assert fields["gemma4_quant.source.name"].contents() == "first.gguf"
    assert "gemma4_quant.imatrix.sha256" not in fields


def test_a_moved_source_is_the_same(example_bf16: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(example_bf16.read_bytes())
    assert fingerprint(read_gguf(copy)) == fingerprint(read_gguf(example_bf16))


@pytest.mark.parametrize("change", ["metadata", "type", "shape", "order", "size"])
def test_another_source_is_another(change: str, example_bf16: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(example_bf16.read_bytes() + (b"\0" * 32 if change == "size" else b""))
    model = read_gguf(copy)
    first, *rest = model.tensors
    changed: dict[str, Model] = {
        "metadata": replace(model, metadata={**model.metadata, "general.name": string("other")}),
        "type": replace(model, tensors=[replace(first, type=GgmlType.F16), *rest]),
        "shape": replace(model, tensors=[replace(first, shape=(*first.shape[:-1], first.n_cols - 1)), *rest]),
        "order": replace(model, tensors=[*rest, first]),
        "size": model,
    }
    assert fingerprint(changed[change]) != fingerprint(read_gguf(example_bf16))
