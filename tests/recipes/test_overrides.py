"""Metadata that the user overrides, as llama-quantize takes it."""

from pathlib import Path

import gguf
import pytest
from places import GOLDEN

import gemma4_quant as gq
from gemma4_quant.errors import ImportanceError, InputError
from gemma4_quant.ggml import FileType
from gemma4_quant.metadata import Value, ValueType, float32, uint16, uint32
from gemma4_quant.model import Model
from gemma4_quant.recipes.overrides import MetadataOverride, overridden, parse_override
from gemma4_quant.recipes.recipe import Recipe


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=int:-3", -3),
        ("a.b=float:1e-6", 1e-6),
        ("a.b=bool:true", True),
        ("a.b=bool:false", False),
        ("a.b=str:x=y:z", "x=y:z"),
        ("a.b=str:", ""),
    ],
)
def test_overrides_are_read(text: str, value: float | str) -> None:
    read = parse_override(text)
    assert read == MetadataOverride("a.b", value)
    assert type(read.value) is type(value)


@pytest.mark.parametrize(
    "text",
    ["a.b", "=int:1", "a.b=1", "a.b=int", "a.b=long:1", "a.b=int:x", "a.b=int:", "a.b=bool:yes", "a.b=float:wide"],
)
def test_malformed_overrides_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_override(text)


@pytest.mark.parametrize("key", ["general.alignment", "general.file_type", "split.count"])
def test_how_a_file_is_written_cannot_be_overridden(key: str) -> None:
    with pytest.raises(InputError, match="cannot be overridden"):
        parse_override(f"{key}=int:1")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    with pytest.raises(InputError):
        parse_override(f"a.b=float:{number}")


def model_with(value: Value | None) -> Model:
    return Model(Path("model.gguf"), {} if value is None else {"a.b": value}, [])


@pytest.mark.parametrize(
    ("old", "new"),
    [(None, uint32(7)), (uint32(1), uint32(7)), (uint16(1), uint16(7)), (float32(1.0), uint32(7))],
)
def test_integers_keep_the_type_of_their_key(old: Value | None, new: Value) -> None:
    assert overridden(model_with(old), [MetadataOverride("a.b", 7)]).metadata["a.b"] == new


@pytest.mark.parametrize(("old", "value"), [(uint16(1), 70_000), (None, -1), (uint32(1), 1 << 32)])
def test_integers_that_do_not_fit_are_refused(old: Value | None, value: int) -> None:
    with pytest.raises(InputError, match=r"a\.b is a uint"):
        overridden(model_with(old), [MetadataOverride("a.b", value)])


def test_signed_integers_may_be_negative() -> None:
    signed = Value(ValueType.INT32, b"\0\0\0\0")
    assert overridden(model_with(signed), [MetadataOverride("a.b", -5)]).metadata["a.b"].decode() == -5


def test_overrides_reach_the_file(example_bf16: Path, tmp_path: Path) -> None:
    texts = ["general.name=str:Ours", "gemma4.context_length=int:1024", "my.flag=bool:true", "my.number=float:0.5"]
    recipe = Recipe(FileType.Q8_0, overrides=tuple(map(parse_override, texts)))
    fields = gguf.GGUFReader(gq.quantize(example_bf16, tmp_path / "out.gguf", recipe=recipe).path).fields
    keys = ("general.name", "gemma4.context_length", "my.flag", "my.number")
    assert [fields[key].contents() for key in keys] == ["Ours", 1024, True, 0.5]


def test_importance_is_used_for_the_named_tensors_only(example_bf16: Path, tmp_path: Path) -> None:
    def without(**lists: tuple[str, ...]) -> set[str]:
        recipe = Recipe(FileType.Q8_0, **lists)
        path = tmp_path / "out.gguf"
        return set(
            gq.quantize(example_bf16, path, recipe=recipe, importance=GOLDEN / "imatrix.gguf").without_importance
        )

    never = without()
    included = without(include_weights=("attn_q", "blk.3."))
    excluded = without(exclude_weights=("attn_q", "blk.3."))
    assert "blk.2.attn_q.weight" in excluded - included
    assert "blk.3.ffn_up.weight" in excluded - included
    assert "blk.2.ffn_up.weight" in included - excluded
    assert never <= included & excluded


def test_excluding_what_a_file_type_needs_is_refused(example_bf16: Path, tmp_path: Path) -> None:
    recipe = Recipe(FileType.Q2_K_S, exclude_weights=("blk.1.",))
    with pytest.raises(ImportanceError, match=r"blk\.1\."):
        gq.quantize(example_bf16, tmp_path / "out.gguf", recipe=recipe, importance=GOLDEN / "imatrix.gguf")
