"""calibrate --hessian, quantize --calibration and quantize --best as a person meets them."""

import json

import pytest
from checkpoints import EXAMPLE
from typer.testing import CliRunner

from gemma4_quant.calibration.moments import read_moments
from gemma4_quant.cli.app import app

TEXT = EXAMPLE / "calibration.txt"
GATHER = ("-c", 64, "--chunks", 9, "--hessian", "-f", TEXT)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def moments(example_bf16, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    result = run("calibrate", example_bf16, *GATHER, "-o", folder / "imatrix.gguf")
    assert result.exit_code == 0, result.output
    assert "second moments for 50 weights, 38 inputs in full, from 512 tokens and 64 held out" in result.stdout
    return folder / "imatrix.hessian.gguf"


def test_moments_go_beside_the_importance_file_and_say_what_they_are(moments):
    assert sorted(path.name for path in moments.parent.iterdir()) == ["imatrix.gguf", "imatrix.hessian.gguf"]
    assert read_moments(moments).provenance.datasets == (str(TEXT),)


def test_quantize_says_what_feedback_gained_and_where_text_was_short(example_bf16, moments, tmp_path):
    arguments = ("quantize", example_bf16, tmp_path / "o.gguf", "q4_0", "--effort", "fast", "--calibration", moments)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "error feedback: the layer-output error of " in result.stdout
    assert "fewer than three tokens a column for " in result.stdout
    report = json.loads(run(*arguments, "--json").stdout)["feedback"]["tensors"]
    assert {"name", "type", "error_before", "error_after", "held_out_ratio", "n_few"} <= set(report[0])
    assert sum(tensor["n_few"] for tensor in report) > 5


def test_a_dry_run_counts_the_time_and_memory_of_feedback(example_bf16, moments, tmp_path):
    arguments = ("quantize", example_bf16, tmp_path / "o.gguf", "q4_0", "--dry-run", "--json")
    plain = json.loads(run(*arguments).stdout)
    fed = json.loads(run(*arguments, "--calibration", moments).stdout)
    assert fed["memory_bytes"] > plain["memory_bytes"]
    assert plain["seconds"] is None or fed["seconds"] > plain["seconds"]
    assert list(tmp_path.iterdir()) == []


def test_parts_are_merged_by_the_same_command(moments, tmp_path):
    result = run("calibrate", "--merge", moments, moments, "-o", tmp_path / "both.gguf")
    assert result.exit_code == 0, result.output
    assert "second moments of 1,024 tokens and 128 held out, from 1 texts" in result.stdout
    once, twice = read_moments(moments), read_moments(tmp_path / "both.gguf")
    assert twice["blk.0.attn_q.weight"].counts[0] == 2 * once["blk.0.attn_q.weight"].counts[0]


def test_best_is_one_command_and_tells_first_what_it_takes(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text(TEXT.read_text(encoding="utf-8")[:12_000], encoding="utf-8")
    arguments = ("quantize", EXAMPLE, tmp_path / "o.gguf", "q4_0", "--effort", "fast", "--best", "-f", text)
    told = run(*arguments, "--dry-run")
    assert told.exit_code == 0, told.output
    assert [line.split(":")[0] for line in told.stdout.splitlines()] == ["disk", "memory", "time"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "disk: " in result.stderr
    assert "second moments for 50 weights" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.gguf", "short.txt"]


def test_what_does_not_go_together_is_refused(example_bf16, moments, tmp_path):
    alone = run("quantize", example_bf16, tmp_path / "o.gguf", "q4_0", "-f", TEXT)
    assert alone.exit_code == 2
    assert "--best" in alone.stderr
    both = run("quantize", example_bf16, tmp_path / "o.gguf", "q4_0", "--best", "--calibration", moments)
    assert both.exit_code == 1
    assert "gathers its own statistics" in both.stderr
    other = run("quantize", example_bf16, tmp_path / "o.gguf", "q4_0", "--calibration", example_bf16)
    assert other.exit_code == 1
    assert "without second moments" in other.stderr
