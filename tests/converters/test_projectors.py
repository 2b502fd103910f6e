"""Projectors against recorded facts of llama.cpp's converter: every key, value, type, name, shape, and the data."""

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from projector_checkpoints import DIRECTORY_NAMES, KINDS, write_multimodal

from gemma4_quant.errors import NonFiniteError
from gemma4_quant.formats.checkpoint import open_checkpoint
from gemma4_quant.formats.safetensors_header import StoredTensor
from gemma4_quant.projector_conversion import convert_projector

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = [(kind, out_type) for kind in KINDS for out_type in ("bf16", "f16")] + [("full", "f32"), ("full", "q8_0")]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("projectors")
    return {kind: write_multimodal(root / DIRECTORY_NAMES[kind], kind) for kind in KINDS}


def golden(kind: str, out_type: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((GOLDEN / f"projector-{kind}-{out_type}.json").read_text())
    return facts


def described(path: Path) -> dict[str, Any]:
    """What a GGUF file holds, in the form of the golden files, as the format's own reader sees it."""
    reader = gguf.GGUFReader(path)
    metadata = {
        key: {"types": [kind.name for kind in field.types], "value": field.contents()}
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    tensors = {
        tensor.name: {
            "type": tensor.tensor_type.name,
            "shape": [int(size) for size in tensor.shape],
            "sha256": hashlib.sha256(np.ascontiguousarray(tensor.data).tobytes()).hexdigest(),
        }
        for tensor in reader.tensors
    }
    return {"metadata": metadata, "tensors": tensors}


@pytest.mark.parametrize(("kind", "out_type"), RECORDED)
def test_files_are_llama_cpps_key_for_key_and_byte_for_byte(
    kind: str, out_type: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    written = convert_projector(directories[kind], tmp_path / "out.gguf", out_type)
    ours, facts = described(written.path), golden(kind, out_type)
    assert ours == facts
    assert list(ours["metadata"]) == list(facts["metadata"])
    assert list(ours["tensors"]) == list(facts["tensors"])


def test_weights_beyond_float16_stay_f32_in_an_f16_file_and_are_named(tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / "model")
    stored = open_checkpoint(directory).tensors["model.embed_vision.embedding_projection.weight"]
    assert isinstance(stored, StoredTensor)
    with stored.file.path.open("r+b") as file:
        file.seek(stored.offset)
        file.write(np.uint16(0x4974).tobytes())  # 999,424 in bfloat16
    written = convert_projector(directory, tmp_path / "out.gguf", "f16")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(written.path).tensors}
    assert types["mm.input_projection.weight"] == "F32"
    assert types["mm.a.input_projection.weight"] == "F16"
    assert written.remarks == ("1 tensors with weights beyond float16 stay F32: mm.input_projection.weight",)


@pytest.mark.parametrize(("dtype", "expected"), [("BF16", "bf16"), ("F16", "f16"), ("F32", "bf16")])
def test_the_type_is_bf16_unless_the_encoders_are_stored_in_f16(dtype: str, expected: str, tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / "model", dtype=dtype)
    assert convert_projector(directory, tmp_path).out_type == expected


def test_damaged_weights_leave_no_file(tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / "model")
    stored = open_checkpoint(directory).tensors["model.vision_tower.encoder.layers.0.mlp.up_proj.input_max"]
    assert isinstance(stored, StoredTensor)
    with stored.file.path.open("r+b") as file:
        file.seek(stored.offset)
        file.write(np.uint16(0x7FC0).tobytes())  # NaN
    with pytest.raises(NonFiniteError, match=r"v\.blk\.0\.ffn_up\.input_max holds NaN"):
        convert_projector(directory, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*.gguf*"))
