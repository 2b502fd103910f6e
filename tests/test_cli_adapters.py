"""`convert` with adapters, from the command line."""

import json
from pathlib import Path

import pytest
from adapters import write_adapter
from checkpoints import write_checkpoint
from typer.testing import CliRunner

from gemma4_quant.cli.app import app
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.metadata import get_string

RUNNER = CliRunner()
QUERIES = ("model.layers.0.self_attn.q_proj.weight", (256, 256))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("cli") / "base", "dense")


def test_adapters_are_merged_one_after_the_other(base: Path, tmp_path: Path) -> None:
    adapters = [write_adapter(tmp_path / str(seed), [QUERIES], seed=seed) for seed in (1, 2)]
    rows = []
    for number in range(3):
        options = [option for adapter in adapters[:number] for option in ("--adapter", str(adapter))]
        out = tmp_path / f"{number}.gguf"
        result = RUNNER.invoke(app, ["convert", str(base), "--outfile", str(out), "--outtype", "f32", *options])
        assert result.exit_code == 0, result.output
        tensor = next(tensor for tensor in read_gguf(out).tensors if tensor.name == "blk.0.attn_q.weight")
        rows.append(tensor.source.read_rows(0, 256).view("<f4"))
    assert abs(rows[1] - rows[0]).max() > 0.1 < abs(rows[2] - rows[1]).max()


def test_an_adapter_becomes_a_file_of_its_own(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "poet", [QUERIES])
    result = RUNNER.invoke(app, ["convert", str(adapter), "--as-adapter", "--base", str(base), "--json"])
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout[result.stdout.index("{") :])
    assert written["out_type"] == "f32"
    model = read_gguf(adapter / "Poet-F32-LoRA.gguf")
    assert get_string(model.metadata, "general.type") == "adapter"
    assert [tensor.name for tensor in model.tensors] == ["blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--as-adapter", "--mmproj"], "--as-adapter"),
        (["--as-adapter", "--dry-run"], "--as-adapter"),
        (["--as-adapter", "--adapter", "x"], "--as-adapter"),
        (["--base", "x"], "--base"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(options: list[str], reason: str, base: Path) -> None:
    result = RUNNER.invoke(app, ["convert", str(base), *options])
    assert result.exit_code == 2
    assert reason in result.stderr


def test_what_cannot_be_merged_is_one_line_and_exit_code_1(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", [QUERIES], use_dora=True)
    result = RUNNER.invoke(app, ["convert", str(base), "--adapter", str(adapter), "--outfile", str(tmp_path / "x")])
    assert result.exit_code == 1
    assert "uses DoRA" in result.stderr
    assert not (tmp_path / "x").exists()


def test_quantize_merges_adapters_into_a_checkpoint(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", [QUERIES])
    merged = tmp_path / "merged.gguf"
    arguments = [["convert", str(base), "--outfile", str(merged), "--outtype", "f32", "--adapter", str(adapter)]]
    arguments += [
        ["quantize", str(base), str(tmp_path / "direct.gguf"), "q8_0", "--adapter", str(adapter)],
        ["quantize", str(merged), str(tmp_path / "after.gguf"), "q8_0"],
    ]
    for each in arguments:
        result = RUNNER.invoke(app, each)
        assert result.exit_code == 0, result.output
    direct, after = (
        {tensor.name: tensor.source.read_rows(0, tensor.n_rows).tobytes() for tensor in read_gguf(path).tensors}
        for path in (tmp_path / "direct.gguf", tmp_path / "after.gguf")
    )
    assert direct == after


def test_adapters_are_not_merged_into_gguf_files(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", [QUERIES])
    assert RUNNER.invoke(app, ["convert", str(base), "--outfile", str(tmp_path / "base.gguf")]).exit_code == 0
    arguments = ["quantize", str(tmp_path / "base.gguf"), str(tmp_path / "out.gguf"), "q8_0", "--adapter"]
    result = RUNNER.invoke(app, [*arguments, str(adapter)])
    assert result.exit_code == 1
    assert "is no checkpoint directory" in result.stderr
