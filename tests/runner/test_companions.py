"""Files that llama.cpp loads together, and files on which it would abort the process that asks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint
from projector_checkpoints import write_multimodal

from gemma4_quant.conversion import convert
from gemma4_quant.converters.projector import load_projector
from gemma4_quant.errors import RunError
from gemma4_quant.ggml import GgmlType
from gemma4_quant.metadata import uint32
from gemma4_quant.projector_conversion import convert_projector, projector_plan
from gemma4_quant.runner.companions import Companions, try_together
from gemma4_quant.writing.writer import write_gguf


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multimodal(tmp_path_factory.mktemp("companions") / "model", with_text=True)


@pytest.fixture(scope="module")
def model(directory: Path) -> Path:
    return convert(directory).path


def projector_with(directory: Path, path: Path, **changes: Any) -> Path:
    """A projector whose metadata contradicts its tensors."""
    made = load_projector(directory)
    metadata = {**made.metadata, **{key.replace("__", "."): uint32(value) for key, value in changes.items()}}
    write_gguf(projector_plan(replace(made, metadata=metadata), GgmlType.BF16), path)
    return path


def test_a_model_alone_neither_sees_nor_hears(model: Path) -> None:
    assert try_together(model) == Companions(sees=False, hears=False, drafts=False)


def test_an_abort_of_llama_cpp_becomes_an_error_with_its_words(directory: Path, model: Path, tmp_path: Path) -> None:
    bad = projector_with(directory, tmp_path / "bad.gguf", clip__audio__num_mel_bins=64)
    with pytest.raises(RunError, match="ggml_can_mul_mat"):
        try_together(model, bad)


def test_a_projector_for_another_width_is_refused(directory: Path, model: Path, tmp_path: Path) -> None:
    other = convert(write_checkpoint(tmp_path / "narrow", "dense", changes={"hidden_size": 128})).path
    projector = convert_projector(directory, tmp_path).path
    assert try_together(model, projector).sees
    with pytest.raises(RunError, match="mismatch between text model"):
        try_together(other, projector)


def test_what_is_no_projector_or_drafter_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Failed to load CLIP model"):
        try_together(model, projector=model)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(model.read_bytes()[:5000])
    with pytest.raises(RunError, match=r"cannot load .*damaged\.gguf together"):
        try_together(model, drafter=damaged)


def test_a_drafter_loads_on_its_target(model: Path, tmp_path: Path) -> None:
    drafter = convert(write_checkpoint(tmp_path / "drafter", "assistant")).path
    assert try_together(model, drafter=drafter).drafts
