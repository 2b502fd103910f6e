"""Experts saved one by one become the stacks that fused checkpoints have."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from adapters import write_adapter
from checkpoints import StoredData, random_weights, tensor_shapes, text_config, write_checkpoint, write_safetensors

from gemma4_quant.converters import load_model
from gemma4_quant.errors import CheckpointError, UnmappedTensorsError
from gemma4_quant.model import Model

Split = Callable[[str, tuple[int, ...], bytes], dict[str, StoredData]]
LAYER = "model.language_model.layers.1.experts"


def three_matrices(name: str, shape: tuple[int, ...], data: bytes) -> dict[str, StoredData]:
    """Split a stack into gate, up and down projections, as mixtures of other families are saved."""
    stack, _, part = name.rpartition(".")
    n_experts, rows, columns = shape
    if part == "down_proj":
        return two_matrices(name, shape, data)
    half = len(data) // n_experts // 2
    return {
        f"{stack}.{expert}.{half_name}_proj.weight": (
            "BF16",
            (rows // 2, columns),
            data[(2 * expert + number) * half : (2 * expert + number + 1) * half],
        )
        for expert in range(n_experts)
        for number, half_name in enumerate(("gate", "up"))
    }


def two_matrices(name: str, shape: tuple[int, ...], data: bytes) -> dict[str, StoredData]:
    """Split a stack into one matrix an expert."""
    stack, _, part = name.rpartition(".")
    size = len(data) // shape[0]
    return {
        f"{stack}.{expert}.{part}.weight": ("BF16", shape[1:], data[expert * size : (expert + 1) * size])
        for expert in range(shape[0])
    }


def write_split(directory: Path, split: Split) -> dict[str, StoredData]:
    """Write the mixture of experts with its stacks taken apart; returns its tensors."""
    write_checkpoint(directory, "moe")
    tensors: dict[str, StoredData] = {}
    for name, shape in tensor_shapes("moe", text_config("moe")):
        data = random_weights(name, shape, 0)
        tensors.update(split(name, shape, data) if ".experts." in name else {name: ("BF16", shape, data)})
    write_safetensors(directory / "model.safetensors", tensors)
    return tensors


def contents(model: Model) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {
        tensor.name: (tensor.shape, tensor.source.read_rows(0, tensor.n_rows).tobytes()) for tensor in model.tensors
    }


@pytest.mark.parametrize("split", [three_matrices, two_matrices])
def test_experts_saved_one_by_one_convert_to_the_same_file(split: Split, tmp_path: Path) -> None:
    write_split(tmp_path / "split" / "model", split)
    fused = load_model(write_checkpoint(tmp_path / "fused" / "model", "moe"))
    model = load_model(tmp_path / "split" / "model")
    assert contents(model) == contents(fused)
    assert [tensor.name for tensor in model.tensors] == [tensor.name for tensor in fused.tensors]
    assert model.metadata == fused.metadata


def test_rows_are_the_same_in_whatever_pieces_they_are_read(tmp_path: Path) -> None:
    write_split(tmp_path, three_matrices)
    tensor = next(tensor for tensor in load_model(tmp_path).tensors if tensor.name == "blk.1.ffn_gate_up_exps.weight")
    whole = tensor.source.read_rows(0, tensor.n_rows).tobytes()
    for step in (1, 96, 100, 192, 1000):
        pieces = [
            tensor.source.read_rows(start, min(start + step, tensor.n_rows)).tobytes()
            for start in range(0, tensor.n_rows, step)
        ]
        assert b"".join(pieces) == whole


def test_adapters_of_experts_are_merged_into_experts_saved_one_by_one(tmp_path: Path) -> None:
    write_split(tmp_path / "split" / "model", three_matrices)
    fused = write_checkpoint(tmp_path / "fused" / "model", "moe")
    adapter = write_adapter(
        tmp_path / "adapter", [(f"{LAYER}.gate_up_proj", (8, 192, 256)), (f"{LAYER}.down_proj", (8, 256, 96))]
    )
    merged = [load_model(base, adapters=[adapter]) for base in (tmp_path / "split" / "model", fused)]
    assert contents(merged[0]) == contents(merged[1])


def test_missing_experts_are_listed(tmp_path: Path) -> None:
    tensors = write_split(tmp_path, three_matrices)
    del tensors[f"{LAYER}.3.up_proj.weight"], tensors[f"{LAYER}.5.down_proj.weight"]
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(UnmappedTensorsError, match=re.escape(f"lacks {LAYER}.3.up_proj.weight, {LAYER}.5.down_proj")):
        load_model(tmp_path)


def test_experts_without_one_of_their_matrices_are_refused(tmp_path: Path) -> None:
    tensors = write_split(tmp_path, three_matrices)
    kept = {name: data for name, data in tensors.items() if not re.search(r"experts\.\d+\.up_proj", name)}
    write_safetensors(tmp_path / "model.safetensors", kept)
    with pytest.raises(
        UnmappedTensorsError, match="lacks the matrices of whole experts, it has down_proj, gate_proj"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize(("dtype", "shape"), [("F32", (96, 256)), ("BF16", (64, 256)), ("BF16", (96 * 256,))])
def test_experts_of_another_size_or_type_are_refused(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = write_split(tmp_path, three_matrices)
    name = f"{LAYER}.2.up_proj.weight"
    tensors[name] = (dtype, shape, random_weights(name, shape, 0, dtype))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=rf"experts\.gate_up_proj differ: .*2\.up_proj\.weight is .* {dtype}"):
        load_model(tmp_path)


def test_fewer_experts_than_the_config_says_are_refused(tmp_path: Path) -> None:
    tensors = write_split(tmp_path, two_matrices)
    kept = {name: data for name, data in tensors.items() if ".experts.7." not in name}
    write_safetensors(tmp_path / "model.safetensors", kept)
    with pytest.raises(CheckpointError, match=r"experts\.down_proj is \[7, 256, 96\], not \[8, 256, 96\]"):
        load_model(tmp_path)


def test_an_expert_with_an_absurd_number_is_refused_at_once(tmp_path: Path) -> None:
    tensors = write_split(tmp_path, two_matrices)
    tensors[f"{LAYER}.99999.down_proj.weight"] = tensors[f"{LAYER}.0.down_proj.weight"]
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(UnmappedTensorsError, match=r"and 199.* more"):
        load_model(tmp_path)
