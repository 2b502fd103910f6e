"""Conversions against recorded facts of llama.cpp's converter: every key, value, type, name, shape, and the data."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import DIRECTORY_NAMES, DRAFTERS, EXAMPLE, KINDS, write_checkpoint

from gemma4_quant.converters import auto_type, default_file_name, float_type, load_model
from gemma4_quant.ggml import GgmlType
from gemma4_quant.model import Model, Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["example", *KINDS, *DRAFTERS]
OUT_TYPES = {"example": ("bf16", "f16", "f32", "q8_0")}
CONVERT_STEP_KEYS = ("general.file_type",)
"""What the conversion leaves to the one who chooses the output type."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    root = tmp_path_factory.mktemp("checkpoints")
    made = {
        kind: load_model(write_checkpoint(root / DIRECTORY_NAMES[kind], kind, n_shards=2 if kind == "e" else 1))
        for kind in (*KINDS, *DRAFTERS)
    }
    return {"example": load_model(EXAMPLE), **made}


def golden(case: str, out_type: str) -> dict[str, Any]:
    name = f"convert-{out_type}.json" if case == "example" else f"convert-{case}-{out_type}.json"
    facts: dict[str, Any] = json.loads((GOLDEN / name).read_text())
    return facts


def described(model: Model) -> dict[str, Any]:
    """The metadata in the form of the golden files."""
    facts = {}
    for key, value in model.metadata.items():
        decoded = value.decode()
        entry: dict[str, Any] = {"types": [value.type.name] + ([value.item.name] if value.item is not None else [])}
        if "sha256_of_json" in golden_entry(key):
            entry["n"] = len(decoded)
            entry["sha256_of_json"] = hashlib.sha256(json.dumps(decoded, ensure_ascii=False).encode()).hexdigest()
        else:
            entry["value"] = decoded
        facts[key] = entry
    return facts


def golden_entry(key: str) -> dict[str, Any]:
    return golden("example", "bf16")["metadata"].get(key, {})  # type: ignore[no-any-return]


def sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.source.read_rows(0, tensor.n_rows).tobytes()).hexdigest()


@pytest.mark.parametrize("case", CASES)
def test_metadata_has_the_keys_types_values_and_order_of_llama_cpp(case: str, models: dict[str, Model]) -> None:
    facts = golden(case, "bf16")["metadata"]
    assert described(models[case]) == facts
    assert list(models[case].metadata) == list(facts)


@pytest.mark.parametrize("case", CASES)
def test_tensors_have_the_names_shapes_and_order_of_llama_cpp(case: str, models: dict[str, Model]) -> None:
    facts = golden(case, "bf16")["tensors"]
    ours = {tensor.name: list(reversed(tensor.shape)) for tensor in models[case].tensors}
    assert ours == {name: entry["shape"] for name, entry in facts.items()}
    assert list(ours) == list(facts)


@pytest.mark.parametrize("case", CASES)
def test_data_that_needs_no_encoding_is_llama_cpps(case: str, models: dict[str, Model]) -> None:
    facts = golden(case, "bf16")["tensors"]
    same_type = [tensor for tensor in models[case].tensors if tensor.type.name == facts[tensor.name]["type"]]
    assert len(same_type) > 20
    assert {tensor.name: sha256(tensor) for tensor in same_type} == {
        tensor.name: facts[tensor.name]["sha256"] for tensor in same_type
    }


@pytest.mark.parametrize(
    ("case", "out_type"), [(case, kind) for case in CASES for kind in OUT_TYPES.get(case, ("bf16", "q8_0"))]
)
def test_output_types_are_llama_cpps(case: str, out_type: str, models: dict[str, Model]) -> None:
    facts = golden(case, out_type)["tensors"]
    chosen = {
        tensor.name: float_type(tensor.name, tensor.shape, GgmlType[out_type.upper()]).name
        for tensor in models[case].tensors
    }
    assert chosen == {name: entry["type"] for name, entry in facts.items()}


def test_rows_that_are_not_whole_blocks_become_f16() -> None:
    assert float_type("blk.0.ffn_down.weight", (8, 33), GgmlType.Q8_0) is GgmlType.F16
    assert float_type("blk.0.ffn_down.weight", (8, 64), GgmlType.Q8_0) is GgmlType.Q8_0


@pytest.mark.parametrize(
    ("dtype", "expected"), [("BF16", GgmlType.BF16), ("F16", GgmlType.F16), ("F32", GgmlType.F16)]
)
def test_auto_keeps_the_16_bit_type_of_the_checkpoint(dtype: str, expected: GgmlType, tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path / "model", "dense", dtype=dtype))
    assert auto_type(model) is expected


def test_default_file_names_follow_the_naming_convention(models: dict[str, Model]) -> None:
    """Names as llama.cpp's converter made them for these directories."""
    assert default_file_name(models["moe"].metadata, GgmlType.BF16) == "Gemma-4-1M-A1M-it-BF16.gguf"
    assert default_file_name(models["example"].metadata, GgmlType.Q8_0) == "Tiny-Gemma4-E-6.3M-Q8_0.gguf"


def test_a_given_name_replaces_the_guessed_one(tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path / "model"), model_name="My model")
    assert model.metadata["general.name"].decode() == "My model"


def test_rotated_pairs_have_frequency_factor_one_and_the_rest_none(models: dict[str, Model]) -> None:
    import numpy as np

    rope = models["dense"].tensors[0]
    factors = rope.source.read_rows(0, 1).view("<f4")[0]
    # a global head of 128 has 64 pairs, a quarter of which rotates
    assert factors.tolist() == [1.0] * 16 + [float(np.float32(1e30))] * 48


def test_shards_and_prefixes_change_nothing(tmp_path: Path, models: dict[str, Model]) -> None:
    whole = load_model(write_checkpoint(tmp_path / "a", "e"))
    assert {tensor.name: sha256(tensor) for tensor in whole.tensors} == {
        tensor.name: sha256(tensor) for tensor in models["e"].tensors
    }
