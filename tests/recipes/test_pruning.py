"""Layers left out: the rest is what it was, runs, and gets the types that llama-quantize would give it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from family_shapes import SHAPES, write_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_quantize import dry_run
from places import GOLDEN

import gemma4_quant as gq
from gemma4_quant.errors import InputError, ShapeError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.metadata import get_int, string
from gemma4_quant.model import ArrayRows, Tensor
from gemma4_quant.quantize_plan import quantize_plan
from gemma4_quant.recipes.pruning import SelectedColumns, SelectedRows, parse_layers, pruned
from gemma4_quant.recipes.recipe import Recipe
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel


def rows_of(tensor: Tensor) -> np.ndarray:
    return tensor.source.read_rows(0, tensor.n_rows)


def test_what_remains_is_what_it_was(example_f32: Path, tmp_path: Path) -> None:
    """Layers 0 and 4 of six; the last three read the keys and values of layers 1 and 2."""
    recipe = Recipe(FileType.F32, prune_layers=(0, 4))
    model = read_gguf(gq.quantize(example_f32, tmp_path / "pruned.gguf", recipe=recipe).path)
    before = {tensor.name: tensor for tensor in read_gguf(example_f32).tensors}
    after = {tensor.name: tensor for tensor in model.tensors}
    assert get_int(model.metadata, "gemma4.block_count") == 4
    assert get_int(model.metadata, "gemma4.attention.shared_kv_layers") == 2
    pattern = read_gguf(example_f32).metadata["gemma4.attention.sliding_window_pattern"].decode()
    kept = [1, 2, 3, 5]
    assert model.metadata["gemma4.attention.sliding_window_pattern"].decode() == [pattern[layer] for layer in kept]
    for new, old in enumerate(kept):
        parts = {name.removeprefix(f"blk.{old}.") for name in before if name.startswith(f"blk.{old}.")}
        for part in parts:
            np.testing.assert_array_equal(rows_of(after[f"blk.{new}.{part}"]), rows_of(before[f"blk.{old}.{part}"]))
    assert not [name for name in after if re.match(r"blk\.[4-9]", name)]
    table = rows_of(before["per_layer_token_embd.weight"]).view("<f4").reshape(-1, 6, 64)[:, kept]
    np.testing.assert_array_equal(rows_of(after["per_layer_token_embd.weight"]).view("<f4"), table.reshape(-1, 256))
    projection = rows_of(before["per_layer_model_proj.weight"]).reshape(6, 64, -1)[kept]
    np.testing.assert_array_equal(rows_of(after["per_layer_model_proj.weight"]), projection.reshape(256, -1))


@pytest.mark.parametrize("layers", [(0,), (0, 4), (3, 4, 5)])
def test_a_pruned_model_runs(layers: tuple[int, ...], example_bf16: Path, tmp_path: Path) -> None:
    recipe = Recipe(FileType.Q5_K_M, prune_layers=layers)
    path = gq.quantize(example_bf16, tmp_path / "p.gguf", recipe=recipe, importance=GOLDEN / "imatrix.gguf").path
    with LoadedModel(path) as model, Session(model, SessionOptions(n_ctx=64, n_outputs=1, n_threads=1)) as session:
        assert np.isfinite(session.decode(np.arange(3, 40)[None], 0, slice(36, None))).all()


def test_importance_follows_its_layer(example_bf16: Path) -> None:
    from gemma4_quant.calibration.importance import read_importance

    importance = read_importance(GOLDEN / "imatrix.gguf")
    plan = quantize_plan(read_gguf(example_bf16), Recipe(FileType.Q4_K_S, prune_layers=(0, 4)), importance).plan
    found = {planned.tensor.name: planned.importance for planned in plan.tensors}
    np.testing.assert_array_equal(found["blk.3.ffn_up.weight"], importance.mean_square("blk.5.ffn_up.weight"))
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"], importance.mean_square("blk.1.ffn_up.weight"))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((2,), r"layer 2 cannot be pruned: the layers from 3 on read the keys and values of layers 1 and 2"),
        ((0, 1), "layer 1 cannot be pruned"),
        ((6,), "no layer 6 to prune; the model has layers 0 to 5"),
    ],
)
def test_layers_that_others_need_are_refused(layers: tuple[int, ...], message: str, example_f32: Path) -> None:
    with pytest.raises(InputError, match=message):
        pruned(read_gguf(example_f32), layers)


def test_one_kind_of_attention_cannot_be_pruned_away(moe_bf16: Path) -> None:
    with pytest.raises(InputError, match="a local and a global layer must remain"):
        pruned(read_gguf(moe_bf16), (2, 5))
    with pytest.raises(InputError, match="a local and a global layer must remain"):
        pruned(read_gguf(moe_bf16), range(6))


def test_drafters_cannot_be_pruned(example_f32: Path) -> None:
    model = read_gguf(example_f32)
    drafter = replace(model, metadata={**model.metadata, "general.architecture": string("gemma4-assistant")})
    with pytest.raises(InputError, match="gemma4-assistant cannot be pruned"):
        pruned(drafter, (1,))


def test_per_layer_tables_in_blocks_across_layers_cannot_be_pruned(example_bf16: Path, tmp_path: Path) -> None:
    wide = Recipe(FileType.Q8_0, named_types={"per_layer_token_embd.weight": GgmlType.Q8_0})
    small = read_gguf(gq.quantize(example_bf16, tmp_path / "q8.gguf", recipe=wide).path)
    assert len(pruned(small, (0,)).tensors) < len(small.tensors)  # 64 weights are two blocks
    tensors = [replace(t, type=GgmlType.Q4_K) if t.name.startswith("per_layer_tok") else t for t in small.tensors]
    with pytest.raises(ShapeError, match="not whole Q4_K blocks"):
        pruned(replace(small, tensors=tensors), (0,))


@pytest.mark.parametrize(("shape", "layers"), [("E2B", (3, 20)), ("26B-A4B", (0, 7)), ("31B", (5, 30, 31, 59))])
def test_types_are_those_of_llama_quantize(shape: str, layers: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "shape.gguf"
    write_shape(path, SHAPES[shape])
    for file_type in (FileType.Q4_K_M, FileType.Q3_K_M, FileType.Q4_K_S, FileType.Q8_0):
        recipe = Recipe(file_type, prune_layers=layers)
        ours = {choice.name: choice.type for choice in quantize_plan(read_gguf(path), recipe, None).choices}
        assert ours == dry_run(path, recipe).types


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1.5", "²"])
def test_lists_of_layers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a list of layers"):
        parse_layers(text)


def test_lists_of_layers_are_read_in_any_order() -> None:
    assert parse_layers("7, 3,11,3") == (3, 7, 11)


@settings(deadline=None)
@given(
    blocks=st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True),
    block_rows=st.integers(1, 5),
    cut=st.tuples(st.integers(0, 99), st.integers(0, 99)),
)
def test_any_range_of_selected_rows_is_that_of_the_whole(
    blocks: list[int], block_rows: int, cut: tuple[int, int]
) -> None:
    plain = np.arange(6 * block_rows * 2, dtype=np.uint8).reshape(-1, 2)
    source = SelectedRows(ArrayRows(lambda: plain), block_rows, tuple(blocks))
    whole = plain.reshape(6, block_rows, 2)[blocks].reshape(-1, 2)
    start, stop = sorted(at % len(whole) for at in cut)
    np.testing.assert_array_equal(source.read_rows(start, stop + 1), whole[start : stop + 1])


def test_selected_columns_stand_side_by_side() -> None:
    plain = np.arange(24, dtype=np.uint8).reshape(2, 12)
    source = SelectedColumns(ArrayRows(lambda: plain), ((0, 3), (6, 9)))
    np.testing.assert_array_equal(source.read_rows(1, 2), [[12, 13, 14, 18, 19, 20]])
