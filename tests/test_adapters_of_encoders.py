"""An adapter that was trained on text and pictures changes both files of a conversion."""

from pathlib import Path

import numpy as np
import pytest
from adapters import write_adapter
from projector_checkpoints import multimodal_config, tower_shapes, write_multimodal

from gemma4_quant.conversion import ConversionOptions
from gemma4_quant.conversion_set import convert_all, forecast_all
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.projector_conversion import convert_projector

QUERIES = ("model.language_model.layers.0.self_attn.q_proj.weight", (256, 256))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multimodal(tmp_path_factory.mktemp("full") / "model", with_text=True)


@pytest.fixture(scope="module")
def tower() -> tuple[str, tuple[int, ...]]:
    """A linear layer of the vision tower."""
    shapes = dict(tower_shapes(multimodal_config("full", None, None)))
    name = next(name for name in shapes if name.endswith("layers.0.mlp.up_proj.linear.weight"))
    return name, shapes[name]


def rows(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.source.read_rows(0, tensor.n_rows) for tensor in read_gguf(path).tensors}


def changed(before: Path, after: Path) -> list[str]:
    plain, merged = rows(before), rows(after)
    return [name for name in plain if not np.array_equal(plain[name], merged[name])]


def test_both_files_hold_what_the_adapter_changed(
    checkpoint: Path, tower: tuple[str, tuple[int, ...]], tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "poet", [QUERIES, tower])
    plain = convert_all(checkpoint, tmp_path, "f32")
    merged = convert_all(checkpoint, tmp_path, "f32", adapters=[adapter])
    assert plain.projector is not None
    assert merged.projector is not None
    assert changed(plain.model.path, merged.model.path) == ["blk.0.attn_q.weight"]
    assert changed(plain.projector.path, merged.projector.path) == ["v.blk.0.ffn_up.weight"]
    assert {merged.model.path.stem[-5:], merged.projector.path.stem[-5:]} == {"-poet"}
    forecast = forecast_all(checkpoint, tmp_path, options=ConversionOptions("f32", adapters=[adapter]))
    assert [output.files[0].path for output in forecast.outputs] == [merged.model.path, merged.projector.path]


def test_a_projector_alone_takes_the_adapters_part_for_it(
    checkpoint: Path, tower: tuple[str, tuple[int, ...]], tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "poet", [QUERIES, tower])
    plain = convert_projector(checkpoint, tmp_path / "plain.gguf").path
    merged = convert_projector(checkpoint, tmp_path / "merged.gguf", adapters=[adapter]).path
    assert changed(plain, merged) == ["v.blk.0.ffn_up.weight"]
