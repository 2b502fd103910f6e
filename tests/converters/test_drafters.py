"""Drafters: what is left out and why, what llama.cpp would not load, and that it loads the rest."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import DRAFTERS, GLOBAL, LOCAL, config, text_config, write_checkpoint

from gemma4_quant.arrays import ByteRows
from gemma4_quant.conversion import convert, convert_plan
from gemma4_quant.converters import load_model
from gemma4_quant.converters.decoders import read_decoder
from gemma4_quant.errors import ConfigError, RunError, UnmappedTensorsError
from gemma4_quant.ggml import GgmlType
from gemma4_quant.model import ArrayRows, Model, Tensor
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.writing.writer import write_gguf


def changed(outer: dict[str, Any] | None = None, **inner: Any) -> dict[str, Any]:
    """The config of a drafter with other values, `outer` beside text_config and `inner` in it."""
    return {**config("assistant", text_config("assistant", inner)), **(outer or {})}


@pytest.mark.parametrize("kind", DRAFTERS)
def test_llama_cpp_loads_a_converted_drafter(kind: str, tmp_path: Path) -> None:
    path = convert(write_checkpoint(tmp_path / "drafter", kind), tmp_path / "drafter.gguf", "bf16").path
    with LoadedModel(path) as model:
        assert model.n_vocab == 2048


def test_a_drafter_is_not_run_without_its_target(tmp_path: Path) -> None:
    path = convert(write_checkpoint(tmp_path / "drafter", "assistant"), tmp_path / "drafter.gguf", "bf16").path
    with LoadedModel(path) as model, pytest.raises(RunError, match="requires ctx_other"):
        Session(model, SessionOptions())


def test_centroids_are_left_out_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gemma4_quant"):
        model = load_model(write_checkpoint(tmp_path, "assistant"))
    assert "left out 2 tensors (llama.cpp scores every token" in caplog.text
    assert not [tensor.name for tensor in model.tensors if "masked" in tensor.name]


def test_llama_cpp_would_not_load_centroids(tmp_path: Path) -> None:
    """Why they are left out: the loader knows the name, and takes only a single number under it."""
    model = load_model(write_checkpoint(tmp_path / "drafter", "assistant"))
    centroids = Tensor("masked_embd_centroids.weight", (32, 64), GgmlType.F32, ArrayRows(lambda: zeros(32, 64 * 4)))
    path = tmp_path / "centroids.gguf"
    write_gguf(convert_plan(Model(model.path, model.metadata, [*model.tensors, centroids]), GgmlType.F32), path)
    with pytest.raises(RunError, match="error loading model"):
        LoadedModel(path)


def zeros(*shape: int) -> ByteRows:
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize("n_shared", [None, 0, 4])
def test_all_layers_share_the_keys_of_the_target_however_the_config_says_it(n_shared: int | None) -> None:
    assert read_decoder(changed(num_kv_shared_layers=n_shared)).config.n_kv_shared == 4


def test_a_config_that_does_not_say_how_wide_the_target_is_means_the_default_one() -> None:
    whole = changed()
    del whole["backbone_hidden_size"]
    assert read_decoder(whole).backbone_width == 1536
    assert read_decoder({**whole, "architectures": ["Gemma4UnifiedAssistantForCausalLM"]}).backbone_width == 3840


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "some layers with their own keys": (changed(num_kv_shared_layers=3), "in a drafter all of them do"),
    "per-layer embeddings": (changed(hidden_size_per_layer_input=8), "cannot have per-layer embeddings"),
    "experts": (
        changed(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32),
        "cannot have experts",
    ),
    "double width": (changed(use_double_wide_mlp=True), "cannot have double-wide layers"),
    "untied": (
        changed({"tie_word_embeddings": False}, tie_word_embeddings=False),
        "cannot have an output matrix of its own",
    ),
    "as wide as its target": (changed({"backbone_hidden_size": 64}), "needs different widths"),
    "no local layer": (changed(layer_types=[GLOBAL] * 4), "no layer has sliding-window"),
    "no width": (changed({"backbone_hidden_size": 0}), "backbone_hidden_size is 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_drafter_that_llama_cpp_cannot_run_is_refused_with_the_reason(name: str) -> None:
    whole, reason = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        read_decoder(whole)
    assert reason in str(caught.value)


def test_a_drafter_of_two_layers_needs_none_with_keys_of_its_own() -> None:
    assert read_decoder(changed(num_hidden_layers=2, num_kv_shared_layers=2, layer_types=[LOCAL, GLOBAL]))


def test_tensors_without_a_place_are_told_for_the_architecture_of_drafters(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "assistant")
    header = tmp_path / "model.safetensors"
    header.write_bytes(header.read_bytes().replace(b'"pre_projection.weight"', b'"pre_projektion.weight"', 1))
    with pytest.raises(UnmappedTensorsError, match=r"no place in a gemma4-assistant GGUF: pre_projektion\.weight"):
        load_model(tmp_path)
