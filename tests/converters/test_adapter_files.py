"""Adapter files: the bytes of convert_lora_to_gguf.py, and in llama.cpp the logits of the merged model."""

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import CARD, linear_shapes, write_adapter, write_adapter_for
from checkpoints import DIRECTORY_NAMES, EXAMPLE, config, tensor_shapes, text_config, write_checkpoint
from gguf_facts import facts_of
from logits_cases import N_TOKENS, random_tokens

from gemma4_quant.adapter_conversion import convert_adapter
from gemma4_quant.conversion import convert
from gemma4_quant.errors import CheckpointError, UnmappedTensorsError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import GgmlType
from gemma4_quant.runner.llama_library import libraries
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel

GOLDEN = Path(__file__).parents[1] / "golden"
EXACT = SessionOptions(
    n_ctx=N_TOKENS,
    n_outputs=N_TOKENS,
    n_threads=1,
    key_type=GgmlType.F32,
    value_type=GgmlType.F32,
    flash_attention=False,
)
QUERIES = ("model.layers.0.self_attn.q_proj.weight", (256, 256))


def write_base(directory: Path, kind: str) -> Path:
    """Write only the config of a checkpoint, which is all that an adapter file needs."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config(kind, text_config(kind))))
    return directory


@pytest.mark.parametrize(("kind", "out_type"), [("e", "f32"), ("e", "q8_0"), ("moe", "bf16"), ("unified", "f32")])
def test_files_are_those_of_llama_cpps_converter(kind: str, out_type: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / f"my-{kind}-poet-v2-lora", linear_shapes(kind), lora_alpha=6)
    (adapter / "README.md").write_text(CARD)
    path = convert_adapter(adapter, tmp_path / "out.gguf", out_type, base=write_base(tmp_path / "base", kind)).path
    expected, found = json.loads((GOLDEN / f"adapter-{kind}-{out_type}.json").read_text()), facts_of(path)
    assert found == expected
    assert list(found["metadata"]) == list(expected["metadata"])
    assert list(found["tensors"]) == list(expected["tensors"])


def logits(model_path: Path, adapter_path: Path | None = None) -> np.ndarray[Any, Any]:
    llama: Any = libraries().llama
    with LoadedModel(model_path) as model, Session(model, EXACT) as session:
        if adapter_path is not None:
            handle = llama.llama_adapter_lora_init(model.handle, os.fsencode(adapter_path))
            assert handle, f"llama.cpp does not load {adapter_path}"
            handles, scales = (type(handle) * 1)(handle), (ctypes.c_float * 1)(1.0)
            assert llama.llama_set_adapters_lora(session._handle, handles, 1, scales) == 0
        return session.decode(random_tokens()[None], 0, slice(None))[0].copy()


def assert_same_logits(base: Path, adapter: Path, tmp_path: Path) -> None:
    plain = convert(base, tmp_path / "base.gguf", "f32").path
    merged = convert(base, tmp_path / "merged.gguf", "f32", adapters=[adapter]).path
    beside = convert_adapter(adapter, tmp_path / "adapter.gguf", base=base).path
    expected = logits(merged)
    assert np.abs(expected - logits(plain)).max() > 2
    difference = np.abs(expected - logits(plain, beside))
    assert np.median(difference) < 2e-3
    assert difference.max() < 0.05


def test_the_example_with_an_adapter_file_computes_what_the_merged_one_does(tmp_path: Path) -> None:
    whole = json.loads((EXAMPLE / "config.json").read_text())
    shapes = [
        (name, shape)
        for name, shape in tensor_shapes("e", whole)
        if name.endswith("_proj.weight") and "per_layer" not in name
    ]
    adapter = write_adapter(tmp_path / "poet", shapes, lora_alpha=1)
    assert_same_logits(EXAMPLE, adapter, tmp_path)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_scales_that_differ_by_module_and_experts_survive(kind: str, tmp_path: Path) -> None:
    """llama.cpp's own converter writes one alpha for all, and knows no adapters of experts."""
    base = write_checkpoint(tmp_path / "base", kind)
    assert_same_logits(base, write_adapter_for(kind, tmp_path / "adapter"), tmp_path)


def test_what_llama_cpp_would_ignore_is_said(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "e")
    shapes = [QUERIES, ("model.per_layer_model_projection.weight", (384, 256))]
    remarks = convert_adapter(write_adapter(tmp_path / "adapter", shapes), base=base).remarks
    assert len(remarks) == 1
    assert "per_layer_model_proj.weight without adapters" in remarks[0]
    assert not convert_adapter(write_adapter(tmp_path / "other", [QUERIES]), base=base).remarks


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "embeddings": ({"shapes": [("model.embed_tokens.weight", (2048, 256))]}, "an embedding, which llama.cpp cannot"),
    "a tied output matrix": ({"shapes": [("lm_head.weight", (2048, 256))]}, "no tensor of its own"),
    "tensors trained as a whole": (
        {"whole": {"model.norm.weight": ("F32", (256,), bytes(1024))}},
        r"replaces 1 tensors \(model.norm.weight\)",
    ),
    "another size": ({"shapes": [(QUERIES[0], (256, 320))]}, r"is \[256, 256\]"),
    "another rank": ({"r": 2}, "adapter_config.json makes it 2"),
    "only pictures": ({"shapes": [("model.vision_tower.encoder.x.weight", (8, 8))]}, "no module of the text model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_do_while_a_model_runs_is_refused(name: str, tmp_path: Path) -> None:
    settings, reason = REFUSED[name]
    adapter = write_adapter(tmp_path / "adapter", **{"shapes": [QUERIES], **settings})
    with pytest.raises(CheckpointError, match=reason):
        convert_adapter(adapter, base=write_base(tmp_path / "base", "dense"))
    assert not list(adapter.glob("*.gguf"))


def test_modules_of_another_model_are_listed(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", [("model.layers.9.self_attn.q_proj.weight", (256, 256))])
    with pytest.raises(UnmappedTensorsError, match=r"1 modules .*: model\.layers\.9\.self_attn\.q_proj"):
        convert_adapter(adapter, base=write_base(tmp_path / "base", "dense"))


def test_the_base_is_found_by_the_name_in_the_adapter_if_it_is_a_directory(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "dense")
    adapter = write_adapter(tmp_path / "poet", [QUERIES], base_model_name_or_path=str(base))
    assert convert_adapter(adapter).path == adapter / "Poet-F32-LoRA.gguf"
    remote = write_adapter(tmp_path / "other", [QUERIES], base_model_name_or_path="google/gemma-4-E2B-it")
    with pytest.raises(CheckpointError, match=r"trained on google/gemma-4-E2B-it; give the directory .* with --base"):
        convert_adapter(remote)


def test_invocation_tokens_of_activated_lora_are_written(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", [QUERIES], alora_invocation_tokens=[5, 6, 7])
    path = convert_adapter(adapter, base=write_base(tmp_path / "base", "dense")).path
    assert read_gguf(path).metadata["adapter.alora.invocation_tokens"].decode() == [5, 6, 7]


def test_scales_of_experts_are_needed_for_what_they_scale(tmp_path: Path) -> None:
    """llama.cpp adds the adapter's part of an expert's output after scaling the output."""
    base = write_base(tmp_path / "base", "moe")
    layer = "model.language_model.layers.1.experts"
    gates = write_adapter(tmp_path / "gates", [(f"{layer}.gate_up_proj", (8, 192, 256))])
    assert convert_adapter(gates, base=base).n_tensors == 2
    downs = write_adapter(tmp_path / "downs", [(f"{layer}.down_proj", (8, 256, 96))])
    with pytest.raises(CheckpointError, match=r"no model.*safetensors"):
        convert_adapter(downs, base=base)


def test_a_base_without_a_config_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", [QUERIES])
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        convert_adapter(adapter, base=tmp_path / DIRECTORY_NAMES["dense"])
