"""Recipes as files: written, read back, edited, copied from other models; what is wrong in them is said."""

import re
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import GOLDEN

import gemma4_quant as gq
from gemma4_quant.errors import InputError, OutputError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.recipes.gemma_defaults import GEMMA_FLOORS, gemma_recipe
from gemma4_quant.recipes.overrides import MetadataOverride
from gemma4_quant.recipes.recipe import (
    Floor,
    PadMode,
    QatMode,
    Recipe,
    TensorTypeOverride,
    choose_types,
    parse_tensor_type,
    read_tensor_types,
)
from gemma4_quant.recipes.recipe_file import parse_recipe, read_recipe, render_recipe, save_recipe
from gemma4_quant.types_of import copy_types


def recipes() -> st.SearchStrategy[Recipe]:
    types = st.sampled_from(GgmlType)
    # what TOML can hold: any text but surrogates
    texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    patterns = texts.map(re.escape).map(re.compile)
    values = st.booleans() | st.integers(-(2**31), 2**32) | texts | st.floats(allow_nan=False, allow_infinity=False)
    return st.builds(
        Recipe,
        file_type=st.sampled_from(FileType),
        pure=st.booleans(),
        leave_output_tensor=st.booleans(),
        output_tensor_type=st.none() | types,
        token_embedding_type=st.none() | types,
        tensor_types=st.lists(
            st.builds(TensorTypeOverride, patterns, types), max_size=3, unique_by=lambda each: each.pattern
        ).map(tuple),
        named_types=st.dictionaries(texts, types, max_size=3),
        floors=st.lists(
            st.builds(Floor, patterns, types, why=texts | st.just(""), from_bits=st.floats(0, 32), beside=texts),
            max_size=3,
        ).map(tuple),
        qat=st.sampled_from(QatMode),
        pad_ffn=st.sampled_from(PadMode),
        prune_layers=st.sets(st.integers(0, 600), max_size=3).map(sorted).map(tuple),
        overrides=st.lists(
            st.builds(MetadataOverride, texts.map("gemma4.{}".format), values),
            max_size=3,
            unique_by=lambda each: each.key,
        ).map(tuple),
        include_weights=st.lists(texts, max_size=2).map(tuple),
        exclude_weights=st.lists(texts, max_size=2).map(tuple),
    )


@given(recipe=recipes())
def test_any_recipe_is_read_back_as_it_was(recipe: Recipe) -> None:
    assert parse_recipe(render_recipe(recipe)) == recipe


def test_a_saved_recipe_names_every_type_and_why(example_bf16: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    first = gq.quantize(example_bf16, tmp_path / "first.gguf", FileType.Q4_K_M, recipe_file=file)
    lines = dict(line.split(" = ", 1) for line in file.read_text().splitlines() if line.startswith(('"', '# "')))
    assert lines['"blk.0.proj.weight"'] == '"q8_0"  # floor of the recipe'
    assert lines['"blk.0.ffn_up.weight"'] == '"q4_k"  # file type'
    assert lines['# "output_norm.weight"'] == '"f32"  # not quantized'
    again = gq.quantize(example_bf16, tmp_path / "again.gguf", recipe=read_recipe(file))
    types = [{t.name: t.type for t in read_gguf(result.path).tensors} for result in (first, again)]
    assert types[0] == types[1]


def test_edits_of_a_recipe_count(example_bf16: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    model = read_gguf(example_bf16)
    recipe = gemma_recipe(FileType.Q4_K_M)
    save_recipe(file, recipe, choose_types(recipe, model))
    text = re.sub(r'"blk.3.ffn_up.weight" = .*', '"blk.3.ffn_up.weight" = "f16"  # edited', file.read_text())
    text = re.sub(r'(?m)^"blk\.4.*\n', "", text)  # the file type decides again
    file.write_text(text.replace("\n[tensors]\n", '\n[patterns]\n"blk.4.attn_q" = "q8_0"\n\n[tensors]\n'))
    before, after = ({c.name: c.type for c in choose_types(r, model)} for r in (recipe, read_recipe(file)))
    changed = {name: (before[name].name, after[name].name) for name in before if before[name] is not after[name]}
    assert changed.pop("blk.3.ffn_up.weight") == ("Q4_K", "F16")
    assert changed.pop("blk.4.attn_q.weight") == ("Q4_K", "Q8_0")
    assert set(changed) <= {"blk.4.ffn_down.weight"}  # its place is now counted among fewer


def test_the_recipe_in_a_files_metadata_makes_the_file_again(example_bf16: Path, tmp_path: Path) -> None:
    recipe = replace(gemma_recipe(FileType.Q5_K_M), tensor_types=(parse_tensor_type("attn_v=q8_0"),))
    path = gq.quantize(example_bf16, tmp_path / "a.gguf", recipe=recipe, importance=GOLDEN / "imatrix.gguf").path
    recorded = gguf.GGUFReader(path).fields["gemma4_quant.recipe"].contents()
    again = gq.quantize(
        example_bf16, tmp_path / "b.gguf", recipe=parse_recipe(recorded), importance=GOLDEN / "imatrix.gguf"
    ).path
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no file_type"),
        ("file_type = 4", "file_type is 4, not a string"),
        ('file_type = "q4_z"', "'q4_z' is not a file type"),
        ("file_type = ", "not a recipe"),
        pytest.param("file_type = " + "9" * 5000, "not a recipe", id="a number of 5000 digits"),
        pytest.param("file_type = " + "[" * 5000, "not a recipe", id="5000 brackets"),
        ('file_type = "q4_0"\nfile_type = "q4_1"', "not a recipe"),
        ('file_type = "q4_0"\nspeed = 9', "unknown keys speed"),
        ('file_type = "q4_0"\npure = "yes"', "pure is 'yes', not true or false"),
        ('file_type = "q4_0"\nqat = "maybe"', "qat is 'maybe', not auto, on or off"),
        ('file_type = "q4_0"\npad_ffn = true', "pad_ffn is True, not a string"),
        ('file_type = "q4_0"\nprune_layers = ["1"]', r"prune_layers is \['1'\], not a list of int"),
        ('file_type = "q4_0"\nprune_layers = [-1]', "counted from 0"),
        ('file_type = "q4_0"\ntensors = 3', r"tensors is 3, not a table such as \[tensors\]"),
        ('file_type = "q4_0"\n[tensors]\na = "q9"', "'q9' is not a tensor type"),
        ('file_type = "q4_0"\n[patterns]\n"(" = "q8_0"', "is not a regular expression"),
        ('file_type = "q4_0"\n[[floors]]\npattern = "a"', "it needs pattern and type"),
        ('file_type = "q4_0"\n[floors]\na = "q8_0"', r"begin with \[\[floors\]\]"),
        ('file_type = "q4_0"\n[[floors]]\npattern="a"\ntype="q8_0"\nfrom_bits="3"', "from_bits of a floor"),
        ('file_type = "q4_0"\n[metadata]\n"general.alignment" = 64', "cannot be overridden"),
        ('file_type = "q4_0"\n[metadata]\n"a.b" = [1]', r"a\.b in \[metadata\]"),
        ('file_type = "q4_0"\n[metadata]\n"a.b" = nan', r"a\.b cannot be nan"),
        ('file_type = "q4_0"\nx = ' + "[" * 5000, "not a recipe"),
    ],
)
def test_recipes_that_say_nonsense_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_recipe(file)
    assert str(file) in str(raised.value)


def test_files_that_are_no_recipes_are_refused(example_bf16: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not UTF-8"):
        read_recipe(example_bf16)
    with pytest.raises(InputError, match="cannot open"):
        read_recipe(tmp_path / "missing.toml")
    with pytest.raises(OutputError):
        save_recipe(tmp_path / "no" / "such" / "folder.toml", Recipe(FileType.Q4_0), [])


def test_names_that_the_model_has_not_are_refused(example_bf16: Path, tmp_path: Path) -> None:
    recipe = Recipe(FileType.Q4_0, named_types={"blk.77.ffn_up.weight": GgmlType.Q8_0})
    with pytest.raises(InputError, match=r"blk\.77\.ffn_up\.weight"):
        gq.quantize(example_bf16, tmp_path / "out.gguf", recipe=recipe)


def test_types_are_copied_from_another_file(example_bf16: Path, tmp_path: Path) -> None:
    odd = replace(gemma_recipe(FileType.Q5_K_S), tensor_types=(parse_tensor_type(r"blk\.2.*ffn=q3_k"),))
    other = gq.quantize(example_bf16, tmp_path / "other.gguf", recipe=odd).path
    copied = copy_types(other, read_gguf(example_bf16))
    assert (copied.missing, copied.strangers, copied.recipe.file_type) == ((), (), FileType.Q5_K_S)
    path = gq.quantize(example_bf16, tmp_path / "copy.gguf", recipe=copied.recipe).path
    theirs, ours = ({t.name: t.type for t in read_gguf(p).tensors} for p in (other, path))
    assert ours == theirs


def test_padding_is_copied_too(moe_bf16: Path, tmp_path: Path) -> None:
    padded = Recipe(FileType.Q6_K, pad_ffn=PadMode.ON)
    other = gq.quantize(moe_bf16, tmp_path / "other.gguf", recipe=padded).path
    copied = copy_types(other, read_gguf(moe_bf16))
    assert copied.recipe.pad_ffn is PadMode.ON
    path = gq.quantize(moe_bf16, tmp_path / "copy.gguf", recipe=copied.recipe).path
    theirs, ours = ({t.name: (t.type, t.shape) for t in read_gguf(p).tensors} for p in (other, path))
    assert ours == theirs


def test_tensors_that_only_one_file_has_are_reported(example_bf16: Path) -> None:
    model = read_gguf(example_bf16)
    fewer = replace(model, tensors=[t for t in model.tensors if "blk.5.attn_q" not in t.name])
    assert copy_types(example_bf16, fewer).strangers == ("blk.5.attn_q.weight",)
    more = replace(model, tensors=[*model.tensors, replace(model.tensors[1], name="output.weight")])
    assert copy_types(example_bf16, more).missing == ("output.weight",)


def test_types_of_another_model_are_not_copied(example_bf16: Path, moe_bf16: Path) -> None:
    with pytest.raises(InputError, match="of another model"):
        copy_types(moe_bf16, read_gguf(example_bf16))


def test_pattern_files_are_read_as_llama_quantize_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "types.txt"
    file.write_text("ATTN_V=Q8_0  ffn_down=q6_k\n\n  token_embd=iq4_xs\n")
    read = [(option.pattern.pattern, option.type.name) for option in read_tensor_types(file)]
    assert read == [("attn_v", "Q8_0"), ("ffn_down", "Q6_K"), ("token_embd", "IQ4_XS")]
    file.write_text("attn_v")
    with pytest.raises(InputError, match="PATTERN=TYPE"):
        read_tensor_types(file)
    with pytest.raises(InputError, match="cannot read"):
        read_tensor_types(tmp_path)


def test_floors_of_the_default_recipe_are_written_with_their_reasons() -> None:
    text = render_recipe(gemma_recipe(FileType.Q4_K_M))
    assert all(floor.why in text for floor in GEMMA_FLOORS)
