"""Options of `quantize` about types, as a person gives them."""

import json
from pathlib import Path

import gguf
import pytest
from places import GOLDEN
from qat_weights import four_bit, write_snapped_example
from test_cli import EXAMPLE, failure, run

from gemma4_quant.cli.quantize import Target, parse_target
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import FileType


def types_of(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.type.name for tensor in read_gguf(path).tensors}


def test_defaults_are_safe_for_gemma_and_said_aloud(example_bf16: Path, tmp_path: Path) -> None:
    safe = run("quantize", example_bf16, tmp_path / "safe.gguf", "q4_k_m")
    strict = run("quantize", example_bf16, tmp_path / "strict.gguf", "q4_k_m", "--strict-llama")
    assert "small sensitive tensors got Q6_K, Q8_0 instead of fewer bits" in safe.stdout
    assert "sensitive" not in strict.stdout
    recorded = json.loads((GOLDEN / "types-plain.json").read_text())["Q4_K_M"]
    assert types_of(tmp_path / "strict.gguf") == recorded
    found = types_of(tmp_path / "safe.gguf")
    changed = {name.split(".")[2] for name in found if found[name] != recorded[name]}
    assert changed == {"proj", "inp_gate", "attn_k", "attn_v"}
    plain = run("quantize", example_bf16, tmp_path / "plain.gguf", "q4_k_m", "--no-floors")
    assert "sensitive" not in plain.stdout
    assert types_of(tmp_path / "plain.gguf") == recorded


def test_a_saved_recipe_comes_back_and_gives_way_to_options(example_bf16: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    first = ("--tensor-type", r"blk\.1\.ffn=q8_0", "--save-recipe", recipe)
    run("quantize", example_bf16, tmp_path / "a.gguf", "q5_k_s", *first)
    again = run("quantize", example_bf16, tmp_path / "b.gguf", "--recipe", recipe, "--json")
    assert json.loads(again.stdout)["file_type"] == "q5_k_s"
    assert types_of(tmp_path / "b.gguf") == types_of(tmp_path / "a.gguf")
    run("quantize", example_bf16, tmp_path / "c.gguf", "--recipe", recipe, "--tensor-type", "ffn_up=q4_k")
    changed = {
        name for name, kind in types_of(tmp_path / "c.gguf").items() if kind != types_of(tmp_path / "a.gguf")[name]
    }
    assert changed == {f"blk.{layer}.ffn_up.weight" for layer in range(6)}


def test_several_types_save_a_recipe_each(example_bf16: Path, tmp_path: Path) -> None:
    names = ("--type", "q8_0,q6_k", "--save-recipe", tmp_path / "{ftype}.toml", "--dry-run")
    assert run("quantize", example_bf16, tmp_path / "m-{ftype}.gguf", *names).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"q8_0.toml", "q6_k.toml"}
    names = ("--type", "q8_0,q6_k", "--save-recipe", tmp_path / "one.toml")
    assert "{ftype}" in failure("quantize", example_bf16, tmp_path / "m-{ftype}.gguf", *names)


def test_types_of_another_file_are_taken_over(example_bf16: Path, tmp_path: Path) -> None:
    run("quantize", example_bf16, tmp_path / "other.gguf", "q6_k", "--tensor-type", "attn_v=q8_0")
    result = run("quantize", EXAMPLE, tmp_path / "mine.gguf", "--recipe-from", tmp_path / "other.gguf")
    assert result.exit_code == 0, result.stderr
    assert types_of(tmp_path / "mine.gguf") == types_of(tmp_path / "other.gguf")
    both = ("--recipe", tmp_path / "x.toml", "--recipe-from", tmp_path / "other.gguf")
    assert run("quantize", EXAMPLE, tmp_path / "mine.gguf", *both).exit_code == 2


def test_a_trained_grid_is_reported(tmp_path: Path) -> None:
    checkpoint = write_snapped_example(tmp_path / "qat", lambda _, rows: four_bit(rows, "absmax/8"))
    kept = run("quantize", checkpoint, tmp_path / "q4_0.gguf", "q4_0")
    assert "50 tensors lie on a trained grid and stay on it" in kept.stdout
    assert "100.00% of the 194,560 blocks encoded in this run are bit-exact" in kept.stdout
    moved = run("quantize", checkpoint, tmp_path / "q8_0.gguf", "q8_0")
    assert "50 tensors lie on a trained grid and were moved off it" in moved.stdout
    silent = json.loads(run("quantize", checkpoint, tmp_path / "q8_0.gguf", "q8_0", "--qat", "off", "--json").stdout)
    assert silent["qat"]["left"] == []
    forced = json.loads(run("quantize", checkpoint, tmp_path / "on.gguf", "q6_k", "--qat", "on", "--json").stdout)
    assert (forced["qat"]["n_tensors"], forced["qat"]["exact_share"]) == (50, 1.0)


def test_padding_is_reported(moe_bf16: Path, tmp_path: Path) -> None:
    padded = run("quantize", moe_bf16, tmp_path / "q6_k.gguf", "q6_k", "--pad-ffn", "on")
    assert "padded expert_feed_forward_length 96 → 256 with zeros" in padded.stdout
    off = json.loads(run("quantize", moe_bf16, tmp_path / "off.gguf", "q2_k", "--pad-ffn", "off", "--json").stdout)
    assert off["padding"] == {}


def test_metadata_and_layers_can_be_changed(example_bf16: Path, tmp_path: Path) -> None:
    changes = ("--override-kv", "general.name=str:Ours", "--override-kv", "my.key=int:3", "--prune-layers", "4,0")
    run("quantize", example_bf16, tmp_path / "out.gguf", "q8_0", *changes)
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    keys = ("general.name", "my.key", "gemma4.block_count")
    assert [fields[key].contents() for key in keys] == ["Ours", 3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--override-kv", "x"), "KEY=TYPE:VALUE"),
        (("--prune-layers", "1,x"), "list of layers"),
        (("--prune-layers", "2"), "layer 2 cannot be pruned"),
        (("--prune-layers", "0", "--keep-split"), "--keep-split"),
        (("--tensor-type-file", "missing.txt"), "missing.txt"),
        (("--recipe", "missing.toml"), "missing.toml"),
        (("--recipe-from", "missing.gguf"), "missing.gguf"),
        (("--output-tensor-type", "q9"), "'q9' is not a tensor type"),
    ],
)
def test_what_cannot_be_done_is_said(
    options: tuple[str, ...], message: str, example_bf16: Path, tmp_path: Path
) -> None:
    assert message in failure("quantize", example_bf16, tmp_path / "o.gguf", "--type", "q8_0", *options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ("--qat", "maybe"),
        ("--pad-ffn", "yes"),
        ("--include-weights", "a", "--exclude-weights", "b"),
    ],
)
def test_wrong_use_is_refused(options: tuple[str, ...], example_bf16: Path, tmp_path: Path) -> None:
    assert run("quantize", example_bf16, tmp_path / "o.gguf", "--type", "q8_0", *options).exit_code == 2


def test_a_recipe_gives_the_type_when_the_arguments_do_not() -> None:
    default = FileType.Q6_K
    assert parse_target([], None, None, default) == Target(None, (FileType.Q6_K,), None)
    assert parse_target(["out.gguf"], None, 2, default) == Target(Path("out.gguf"), (FileType.Q6_K,), 2)
    assert parse_target(["out.gguf", "q8_0", "3"], None, None, default) == Target(
        Path("out.gguf"), (FileType.Q8_0,), 3
    )


def test_help_and_errors_name_every_file_type(example_bf16: Path, tmp_path: Path) -> None:
    shown = "".join(run("quantize", "--help").stdout.split())
    wrong = run("quantize", example_bf16, tmp_path / "o.gguf", "--type", "q9").stderr
    for file_type in FileType:
        name = file_type.name.lower()
        assert name in wrong.replace("\n", " ")
        assert name in shown or file_type is FileType.NVFP4
