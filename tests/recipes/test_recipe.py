"""Types of tensors against llama-quantize: recorded for the example, fresh for the shapes of released models."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_shapes import SHAPES, Shape, whole_model, write_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_quantize import dry_run
from places import GOLDEN

from gemma4_quant import quantization, quantize_plan
from gemma4_quant.errors import GgufError, InputError, ShapeError, UnsupportedTypeError
from gemma4_quant.ggml import FileType, GgmlType, block_size, parse_file_type, row_bytes
from gemma4_quant.metadata import Value, ValueType, numbers, string, uint32
from gemma4_quant.model import ArrayRows, Model, Tensor
from gemma4_quant.recipes.gemma_defaults import gemma_recipe
from gemma4_quant.recipes.llama_types import fitting_type
from gemma4_quant.recipes.recipe import (
    Choice,
    Floor,
    Reason,
    Recipe,
    choose_types,
    parse_tensor_type,
    requires_importance,
)
from gemma4_quant.source import open_model

NO_ROWS = ArrayRows(lambda: np.empty((0, 0), np.uint8))
MIXABLE = [kind for kind in FileType if kind is not FileType.NVFP4]


@cache
def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@cache
def example() -> Model:
    """The example model as llama.cpp's converter describes it; its rows are never read."""
    facts = golden("convert-bf16")
    makers = {"UINT32": uint32, "STRING": string}
    metadata = {
        key: makers[entry["types"][0]](entry["value"])
        for key, entry in facts["metadata"].items()
        if entry["types"][0] in makers and "value" in entry
    }
    tensors = [
        Tensor(name, tuple(reversed(entry["shape"])), GgmlType[entry["type"]], NO_ROWS)
        for name, entry in facts["tensors"].items()
    ]
    return Model(Path("example.gguf"), metadata, tensors)


@pytest.fixture(scope="module")
def shape_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shapes")
    files = {name: folder / f"{name}.gguf" for name in SHAPES}
    for name, path in files.items():
        write_shape(path, SHAPES[name])
    return files


def by_name(choices: list[Choice]) -> dict[str, GgmlType]:
    return {choice.name: choice.type for choice in choices}


def assert_as_llama_cpp(recipe: Recipe, path: Path) -> list[Choice]:
    """Hold our choices, refusals included, to llama.cpp's; returns ours."""
    reference = dry_run(path, recipe)
    if reference.types is None:
        with pytest.raises((ShapeError, UnsupportedTypeError)):
            choose_types(recipe, open_model(path))
        return []
    choices = choose_types(recipe, open_model(path))
    assert by_name(choices) == reference.types
    if not recipe.has_importance:
        assert bool(requires_importance(recipe, choices)) == reference.requires_importance
    return choices


@pytest.mark.parametrize("has_importance", [False, True], ids=["plain", "importance"])
def test_example_gets_the_recorded_types(has_importance: bool) -> None:
    recorded = golden("types-imatrix" if has_importance else "types-plain")
    assert len(recorded) > 25
    for name, types in recorded.items():
        recipe = Recipe(parse_file_type(name), has_importance=has_importance)
        choices = choose_types(recipe, example())
        if types is not None:
            assert {n: kind.name for n, kind in by_name(choices).items()} == types, name
        if not has_importance:
            assert bool(requires_importance(recipe, choices)) == (types is None), name


@pytest.mark.parametrize("has_importance", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_file_type_is_mixed_as_llama_cpp_does(
    shape: str, has_importance: bool, shape_files: dict[str, Path]
) -> None:
    for file_type in FileType:
        assert_as_llama_cpp(Recipe(file_type, has_importance=has_importance), shape_files[shape])


@pytest.mark.parametrize("shape", ["E2B", "26B-A4B", "untied"])
@pytest.mark.parametrize(
    "options",
    [
        {"pure": True},
        {"leave_output_tensor": True},
        {"output_tensor_type": GgmlType.Q8_0},
        {"output_tensor_type": GgmlType.F32},
        {"token_embedding_type": GgmlType.Q4_K},
        {"token_embedding_type": GgmlType.Q8_0, "output_tensor_type": GgmlType.Q5_K},
        {"pure": True, "token_embedding_type": GgmlType.Q6_K, "output_tensor_type": GgmlType.Q5_0},
        {"tensor_types": ("ffn_down=q8_0", r"blk\.[0-3]\.=f16", "attn_v=iq4_xs")},
        {"tensor_types": ("attn_[qk]=q2_k", "token_embd=q3_k"), "token_embedding_type": GgmlType.Q8_0},
        {"tensor_types": ("output.weight=q2_k", "norm=q2_k", "attn_v=q4_k"), "pure": True},
        {"tensor_types": ("ffn=nvfp4",)},
    ],
    ids=str,
)
def test_options_act_as_in_llama_cpp(shape: str, options: dict[str, Any], shape_files: dict[str, Path]) -> None:
    texts = options.get("tensor_types", ())
    given_options = {**options, "tensor_types": tuple(parse_tensor_type(text) for text in texts)}
    for file_type in (FileType.Q4_K_M, FileType.Q2_K_S, FileType.IQ2_M, FileType.MXFP4_MOE, FileType.BF16):
        assert_as_llama_cpp(Recipe(file_type, **given_options), shape_files[shape])


@settings(deadline=None)
@given(
    file_type=st.sampled_from(MIXABLE),
    shape=st.sampled_from(sorted(SHAPES)),
    has_importance=st.booleans(),
    pure=st.booleans(),
    output=st.none() | st.sampled_from([GgmlType.Q8_0, GgmlType.F16, GgmlType.Q4_0]),
    names=st.lists(st.sampled_from(["ffn_up", "attn_k", "embd", r"\.1\d?\.", "exps", "output"]), max_size=3),
    types=st.lists(st.sampled_from(["q6_k", "iq3_s", "q4_0", "bf16"]), min_size=3, max_size=3),
)
def test_any_combination_of_options_acts_as_in_llama_cpp(
    file_type: FileType,
    shape: str,
    has_importance: bool,
    pure: bool,
    output: GgmlType | None,
    names: list[str],
    types: list[str],
    shape_files: dict[str, Path],
) -> None:
    overrides = tuple(parse_tensor_type(f"{n}={t}") for n, t in zip(names, types, strict=False))
    recipe = Recipe(file_type, has_importance, pure=pure, output_tensor_type=output, tensor_types=overrides)
    assert_as_llama_cpp(recipe, shape_files[shape])


@settings(deadline=None, max_examples=25)
@given(
    n_layers=st.integers(3, 70),
    n_embd=st.sampled_from([256, 480, 512, 1056]),
    n_ff=st.sampled_from([96, 352, 512, 1536]),
    heads=st.sampled_from([(8, 1, 1), (8, 4, 4), (16, 8, 2), (4, 2, 1), (6, 6, 6)]),
    period=st.integers(2, 6),
    experts=st.sampled_from([(0, 0), (8, 96), (16, 704), (3, 256)]),
    n_per_layer=st.sampled_from([0, 64, 256]),
    with_output=st.booleans(),
    has_importance=st.booleans(),
)
def test_models_of_any_shape_are_mixed_as_llama_cpp_does(
    n_layers: int,
    n_embd: int,
    n_ff: int,
    heads: tuple[int, int, int],
    period: int,
    experts: tuple[int, int],
    n_per_layer: int,
    with_output: bool,
    has_importance: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shape = Shape(
        n_layers,
        n_embd,
        n_ff,
        *heads,
        period,
        n_per_layer=n_per_layer,
        n_expert=experts[0],
        n_ff_expert=experts[1],
        with_output=with_output,
    )
    path = tmp_path_factory.mktemp("any") / "shape.gguf"
    write_shape(path, shape)
    for file_type in (
        FileType.Q4_K_M,
        FileType.Q5_K_S,
        FileType.Q3_K_L,
        FileType.Q2_K,
        FileType.IQ3_XS,
        FileType.IQ2_M,
    ):
        assert_as_llama_cpp(Recipe(file_type, has_importance=has_importance), path)
    path.unlink()


def test_choices_keep_the_order_of_the_model(shape_files: dict[str, Path]) -> None:
    model = open_model(shape_files["E2B"])
    chosen = [choice.name for choice in choose_types(Recipe(FileType.Q4_K_M), model)]
    assert chosen == [tensor.name for tensor in model.tensors]
    reversed_model = replace(model, tensors=list(reversed(model.tensors)))
    assert by_name(choose_types(Recipe(FileType.Q4_K_M), reversed_model)) == by_name(
        choose_types(Recipe(FileType.Q4_K_M), model)
    )


def test_a_fallback_says_what_was_wanted(shape_files: dict[str, Path]) -> None:
    choices = choose_types(Recipe(FileType.Q4_K_S), open_model(shape_files["26B-A4B"]))
    fallbacks = {choice.name: (choice.wanted, choice.type) for choice in choices if choice.fallback}
    assert fallbacks["blk.20.ffn_down_exps.weight"] == (GgmlType.Q4_K, GgmlType.Q5_0)
    assert all(re.search(r"ffn_down(_exps)?\.weight$", name) for name in fallbacks)
    assert len(fallbacks) == 2 * SHAPES["26B-A4B"].n_layers


def test_an_embedding_type_that_does_not_fit_falls_back() -> None:
    recipe = Recipe(FileType.Q4_K_M, token_embedding_type=GgmlType.Q4_K)
    choices = {choice.name: choice for choice in choose_types(recipe, example())}
    table = choices["per_layer_token_embd.weight"]  # rows of 384
    assert (table.wanted, table.type, table.fallback) == (GgmlType.Q4_K, GgmlType.Q5_0, True)
    assert choices["token_embd.weight"].type is GgmlType.Q4_K


def test_reasons_name_what_decided() -> None:
    recipe = Recipe(
        FileType.Q4_K_M,
        token_embedding_type=GgmlType.Q8_0,
        tensor_types=(parse_tensor_type("attn_q=q5_k"),),
    )
    reasons = {choice.name: choice.reason for choice in choose_types(recipe, example())}
    assert reasons["output_norm.weight"] is Reason.KEPT
    assert reasons["token_embd.weight"] is Reason.TOKEN_EMBEDDING_TYPE
    assert reasons["blk.3.attn_q.weight"] is Reason.TENSOR_TYPE
    assert reasons["blk.3.attn_output.weight"] is Reason.FILE_TYPE
    assert reasons["blk.5.ffn_down.weight"] is Reason.MIXTURE


def test_first_matching_pattern_wins_and_is_read_in_lower_case() -> None:
    recipe = Recipe(
        FileType.Q4_K_M, tensor_types=(parse_tensor_type("BLK.2.FFN_UP=Q8_0"), parse_tensor_type("ffn_up=q5_k"))
    )
    types = by_name(choose_types(recipe, example()))
    assert types["blk.2.ffn_up.weight"] is GgmlType.Q8_0
    assert types["blk.3.ffn_up.weight"] is GgmlType.Q5_K


@pytest.mark.parametrize("text", ["ffn_down", "=q4_k", "ffn_down=", "", "ffn_(=q4_k", "[=q4_k"])
def test_malformed_tensor_type_options_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(text))):
        parse_tensor_type(text)


def test_unknown_types_in_tensor_type_options_are_refused() -> None:
    with pytest.raises(UnsupportedTypeError, match="'q4_k_m' is not a tensor type"):
        parse_tensor_type("ffn_down=q4_k_m")


def test_a_type_without_a_substitute_names_the_tensor() -> None:
    narrow = Tensor("blk.0.proj.weight", (2, 96), GgmlType.BF16, NO_ROWS)
    recipe = Recipe(FileType.Q4_K_M, tensor_types=(parse_tensor_type("proj=nvfp4"),))
    with pytest.raises(ShapeError, match=r"blk\.0\.proj\.weight: a row of 96 .* NVFP4 blocks of 64"):
        choose_types(recipe, replace(example(), tensors=[narrow]))


@pytest.fixture(scope="module")
def whole_models(shape_files: dict[str, Path]) -> dict[str, Model]:
    """The released models in full size, with rows that cannot be read."""
    return {name: whole_model(path, SHAPES[name]) for name, path in shape_files.items()}


def n_bytes(recipe: Recipe, model: Model) -> int:
    sizes = {tensor.name: tensor.n_rows for tensor in model.tensors}
    widths = {tensor.name: tensor.n_cols for tensor in model.tensors}
    return sum(sizes[c.name] * row_bytes(c.type, widths[c.name]) for c in choose_types(recipe, model))


@pytest.mark.parametrize("shape", ["E2B", "E4B"])
def test_floors_for_gemma_cost_less_than_a_hundredth_of_any_file(shape: str, whole_models: dict[str, Model]) -> None:
    for file_type in MIXABLE:
        plain = n_bytes(Recipe(file_type), whole_models[shape])
        safe = n_bytes(gemma_recipe(file_type), whole_models[shape])
        assert plain <= safe < 1.01 * plain, file_type


def test_floors_for_gemma_hold_small_matrices_of_the_per_layer_models_only(whole_models: dict[str, Model]) -> None:
    model = whole_models["E2B"]
    strict, safe = (by_name(choose_types(r, model)) for r in (Recipe(FileType.Q4_K_S), gemma_recipe(FileType.Q4_K_S)))
    changed = {name for name in strict if strict[name] is not safe[name]}
    small = {f"blk.{layer}.{part}.weight" for layer in range(35) for part in ("proj", "inp_gate")}
    assert changed == small | {f"blk.{layer}.attn_{part}.weight" for layer in range(15) for part in "kv"}
    assert {safe[f"blk.3.{part}.weight"] for part in ("proj", "inp_gate")} == {GgmlType.Q8_0, GgmlType.Q6_K}
    for name in ("12B", "26B-A4B", "31B"):
        for file_type in MIXABLE:
            if file_type is not FileType.Q1_0:  # whose blocks fit no feed-forward layer of 26B-A4B
                recipes = (Recipe(file_type), gemma_recipe(file_type))
                plain, gemma = (choose_types(recipe, whole_models[name]) for recipe in recipes)
                assert plain == gemma


def test_floors_lift_what_the_mixture_chose_but_not_what_was_asked_for() -> None:
    floor = (Floor(re.compile("attn_q"), GgmlType.Q6_K),)
    asked = (parse_tensor_type(r"blk\.1\.attn_q=q3_k"),)
    types = by_name(choose_types(Recipe(FileType.Q4_K_M, floors=floor, tensor_types=asked), example()))
    assert types["blk.0.attn_q.weight"] is GgmlType.Q6_K
    assert types["blk.1.attn_q.weight"] is GgmlType.Q3_K
    assert types["blk.0.ffn_up.weight"] is GgmlType.Q4_K
    for recipe in (Recipe(FileType.Q8_0, floors=floor), Recipe(FileType.Q4_K_M, pure=True, floors=floor)):
        assert choose_types(recipe, example()) == choose_types(replace(recipe, floors=()), example())


def test_floors_do_not_lift_what_is_quantized_already() -> None:
    floor = (Floor(re.compile("attn_q"), GgmlType.Q6_K),)
    again = [replace(t, type=GgmlType.Q4_0) if "attn_q.w" in t.name else t for t in example().tensors]
    types = by_name(choose_types(Recipe(FileType.Q4_K_M, floors=floor), replace(example(), tensors=again)))
    assert types["blk.0.attn_q.weight"] is GgmlType.Q4_K


def test_a_floor_may_hold_for_larger_file_types_only() -> None:
    floors = (
        Floor(re.compile("attn_q"), GgmlType.Q8_0, from_bits=3.0),
        Floor(re.compile("attn_q"), GgmlType.Q4_0),
    )
    found = {
        kind: by_name(choose_types(Recipe(kind, floors=floors), example()))["blk.0.attn_q.weight"].name
        for kind in (FileType.Q3_K_M, FileType.Q2_K)
    }
    assert found == {FileType.Q3_K_M: "Q8_0", FileType.Q2_K: "Q4_0"}


def test_names_win_over_patterns_and_options() -> None:
    recipe = Recipe(
        FileType.Q4_K_M,
        leave_output_tensor=True,
        token_embedding_type=GgmlType.Q8_0,
        tensor_types=(parse_tensor_type("ffn_up=q5_k"),),
        named_types={"token_embd.weight": GgmlType.Q6_K, "blk.0.ffn_up.weight": GgmlType.Q3_K},
    )
    choices = {choice.name: choice for choice in choose_types(recipe, example())}
    assert choices["token_embd.weight"].type is GgmlType.Q6_K
    assert (choices["blk.0.ffn_up.weight"].type, choices["blk.1.ffn_up.weight"].type) == (
        GgmlType.Q3_K,
        GgmlType.Q5_K,
    )
    assert choices["blk.0.ffn_up.weight"].reason is Reason.NAMED


def test_names_of_vectors_do_not_quantize_them() -> None:
    recipe = Recipe(FileType.Q4_K_M, named_types={"output_norm.weight": GgmlType.Q8_0})
    assert by_name(choose_types(recipe, example()))["output_norm.weight"] is GgmlType.F32


def metadata_with(key: str, value: Value | None) -> dict[str, Value]:
    metadata = {k: v for k, v in example().metadata.items() if k != key}
    return metadata if value is None else {**metadata, key: value}


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("general.architecture", string("llama"), UnsupportedTypeError),
        ("general.architecture", None, GgufError),
        ("gemma4.block_count", None, GgufError),
        ("gemma4.block_count", string("six"), GgufError),
        ("gemma4.attention.head_count", None, GgufError),
        ("gemma4.attention.head_count_kv", numbers(ValueType.UINT32, []), GgufError),
        ("gemma4.attention.head_count_kv", numbers(ValueType.FLOAT32, [1.0]), GgufError),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(key: str, value: Value | None, error: type[Exception]) -> None:
    broken = replace(example(), metadata=metadata_with(key, value))
    with pytest.raises(error):
        choose_types(Recipe(FileType.Q4_K_M), broken)


def test_experts_outside_any_layer_are_refused() -> None:
    metadata = {**example().metadata, "gemma4.expert_count": uint32(4)}
    for name in ("ffn_down.weight", "blk.6.ffn_down.weight"):
        stray = Tensor(name, (2, 256), GgmlType.BF16, NO_ROWS)
        with pytest.raises(GgufError, match="belongs to no layer"):
            choose_types(Recipe(FileType.Q4_K_M), Model(Path("stray.gguf"), metadata, [stray]))


def test_zero_key_value_heads_do_not_divide() -> None:
    headless = replace(example(), metadata=metadata_with("gemma4.attention.head_count_kv", uint32(0)))
    types = by_name(choose_types(Recipe(FileType.Q2_K), headless))
    assert types["blk.0.attn_v.weight"] is GgmlType.Q3_K


@given(kind=st.sampled_from(GgmlType), n_cols=st.integers(1, 4096))
def test_a_fitting_type_always_fits(kind: GgmlType, n_cols: int) -> None:
    size = block_size(kind).n_weights
    try:
        fitting = fitting_type(kind, n_cols)
    except ShapeError:
        assert n_cols % size
        return
    assert n_cols % block_size(fitting).n_weights == 0
    assert (fitting is kind) == (n_cols % size == 0)


def test_quantize_tells_the_recipe_about_importance(
    tmp_path: Path, example_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some choices depend on it (ffn_down of Q4_0); the caller's recipe need not mention it."""
    seen: list[bool] = []

    def observing(recipe: Recipe, model: Model) -> list[Choice]:
        seen.append(recipe.has_importance)
        return choose_types(recipe, model)

    monkeypatch.setattr(quantize_plan, "choose_types", observing)
    for importance in (GOLDEN / "imatrix.gguf", None):
        recipe = Recipe(FileType.Q4_0, has_importance=importance is None)
        quantization.quantize(example_bf16, tmp_path / "out.gguf", recipe=recipe, importance=importance)
    assert seen == [True, False]
