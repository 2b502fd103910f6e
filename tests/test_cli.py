"""The commands as a person meets them: right use, wrong use, and what is left behind."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from gemma4_quant.cli.app import app
from gemma4_quant.cli.quantize import Target, parse_target
from gemma4_quant.formats.gguf_header import encode_header
from gemma4_quant.ggml import FileType
from gemma4_quant.metadata import ValueType, float32, numbers, string

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-gemma4-e"
COMMANDS = ("convert", "calibrate", "quantize", "bench", "inspect", "verify")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failure(*arguments: object) -> str:
    """Run a command that must fail; return its one line."""
    result = run(*arguments)
    assert result.exit_code == 1, (result.output, result.stderr, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("gemma4-quant: error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return lines[0]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the example that a test may damage."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(EXAMPLE, copy, copy_function=shutil.copyfile)
    return copy


def files_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_ends_with_two_examples(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    ending = result.stdout.rstrip().split("Examples:\n")[1].splitlines()
    assert len(ending) == 2
    assert all(line.strip().startswith(f"gemma4-quant {name} ") for line in ending)


def test_convert_quantize_inspect_with_json(tmp_path: Path) -> None:
    converted = json.loads(run("convert", EXAMPLE, "--outfile", tmp_path / "tiny-{ftype}.gguf", "--json").stdout)
    assert Path(converted["path"]) == tmp_path / "tiny-bf16.gguf"
    assert Path(converted["path"]).stat().st_size == converted["n_bytes"]
    quantized = json.loads(run("quantize", converted["path"], "--type", "Q4_K_M", "--json").stdout)
    assert Path(quantized["path"]) == tmp_path / "tiny-Q4_K_M.gguf"
    seen = json.loads(run("inspect", quantized["path"], "--json").stdout)
    assert seen["file_type"] == "Q4_K_M"
    assert seen["architecture"] == "gemma4"
    assert {total["type"]: total["n_tensors"] for total in seen["types"]} == quantized["types"]
    assert seen["bits_per_weight"] == pytest.approx(quantized["bits_per_weight"])


def test_quantizing_a_checkpoint_gives_the_bytes_of_the_two_steps(tmp_path: Path) -> None:
    run("convert", EXAMPLE, "--outfile", tmp_path / "bf16.gguf", "--outtype", "bf16")
    run("quantize", tmp_path / "bf16.gguf", tmp_path / "two-steps.gguf", "Q5_K_M")
    assert run("quantize", EXAMPLE, tmp_path / "direct.gguf", "--type", "q5_k_m").exit_code == 0
    two_steps = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "two-steps.gguf").tensors}
    for tensor in gguf.GGUFReader(tmp_path / "direct.gguf").tensors:
        assert tensor.data.tobytes() == two_steps[tensor.name].data.tobytes(), tensor.name


def test_inspect_shows_a_checkpoint_and_lists_tensors() -> None:
    shown = run("inspect", EXAMPLE, "--tensors").stdout
    assert "checkpoint, gemma4" in shown
    assert "blk.5.ffn_down.weight" in shown
    assert "6,332," in shown


@pytest.mark.parametrize(
    ("rest", "file_type", "expected"),
    [
        (["Q4_K_M"], None, Target(None, (FileType.Q4_K_M,), None)),
        (["out.gguf", "q4_k"], None, Target(Path("out.gguf"), (FileType.Q4_K_M,), None)),
        (["out.gguf", "15", "3"], None, Target(Path("out.gguf"), (FileType.Q4_K_M,), 3)),
        (["q6_k", "4"], None, Target(None, (FileType.Q6_K,), 4)),
        (["out.gguf"], "q8_0", Target(Path("out.gguf"), (FileType.Q8_0,), None)),
        (
            ["out-{ftype}.gguf", "q4_k_m,Q8_0,q4_k"],
            None,
            Target(Path("out-{ftype}.gguf"), (FileType.Q4_K_M, FileType.Q8_0), None),
        ),
        ([], "q8_0", Target(None, (FileType.Q8_0,), None)),
    ],
)
def test_quantize_reads_positions_as_llama_quantize_does(
    rest: list[str], file_type: str | None, expected: Target
) -> None:
    assert parse_target(rest, file_type, None) == expected


@pytest.mark.parametrize(
    ("rest", "file_type"),
    [([], None), (["out.gguf"], None), (["a.gguf", "q4_k_m", "x"], None), (["a.gguf", "b.gguf"], "q8_0"), ([], "q9")],
)
def test_quantize_refuses_positions_that_mean_nothing(rest: list[str], file_type: str | None) -> None:
    with pytest.raises(typer.BadParameter):
        parse_target(rest, file_type, None)


def test_usage_errors_exit_with_2(tmp_path: Path) -> None:
    assert run("quantize", EXAMPLE, tmp_path / "out.gguf").exit_code == 2
    assert run("quantize", EXAMPLE, "--type", "q4_k_m", "--effort", "much").exit_code == 2
    assert run("convert", EXAMPLE, "--no-such-option").exit_code == 2
    assert run("convert", EXAMPLE, "--outtype", "q4_k_m").exit_code == 2


def test_missing_files_are_named(tmp_path: Path, example_bf16: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for arguments in (
        ("convert", nowhere),
        ("quantize", nowhere, "--type", "q4_k_m"),
        ("quantize", EXAMPLE, tmp_path / "o.gguf", "--type", "q4_k_m", "--imatrix", nowhere),
        ("calibrate", nowhere, "-f", EXAMPLE / "calibration.txt", "-o", tmp_path / "i.gguf"),
        ("calibrate", example_bf16, "-f", nowhere, "-o", tmp_path / "i.gguf"),
        ("bench", nowhere),
        ("bench", example_bf16, "-f", nowhere),
        ("bench", example_bf16, "--reference", nowhere, "-f", EXAMPLE / "evaluation.txt"),
        ("inspect", nowhere),
    ):
        assert str(nowhere) in failure(*arguments), arguments
    assert files_in(tmp_path) == set()


def test_a_directory_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in failure("convert", tmp_path / "empty", "--outfile", tmp_path / "o.gguf")
    assert "config.json" in failure("quantize", tmp_path / "empty", tmp_path / "o.gguf", "--type", "q4_0")
    assert files_in(tmp_path) == {"empty"}


def test_another_architecture_is_named(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert "LlamaForCausalLM" in failure("convert", checkpoint, "--outfile", tmp_path / "o.gguf")
    assert files_in(tmp_path) == {"checkpoint"}


def test_truncated_and_corrupted_shards_are_named(checkpoint: Path, tmp_path: Path) -> None:
    shard = checkpoint / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[:5],
        b"",
        b"\xff" * 64 + whole[64:],
        whole[:8] + b"[" + whole[9:],
    ):
        shard.write_bytes(damaged)
        assert shard.name in failure("convert", checkpoint, "--outfile", tmp_path / "o.gguf")
        assert files_in(tmp_path) == {"checkpoint"}


@pytest.mark.parametrize("outtype", ["bf16", "f32", "q8_0"])
def test_nan_weights_are_named_and_leave_no_file(checkpoint: Path, tmp_path: Path, outtype: str) -> None:
    shard = checkpoint / "model-00001-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-2:] = b"\xc0\x7f"
    shard.write_bytes(content)
    line = failure("convert", checkpoint, "--outfile", tmp_path / "o.gguf", "--outtype", outtype)
    assert "blk." in line
    assert files_in(tmp_path) == {"checkpoint"}


def test_files_that_are_no_gguf_are_refused(tmp_path: Path) -> None:
    for name, content in (("text.gguf", b"hello" * 100), ("empty.gguf", b""), ("zero.gguf", bytes(1000))):
        (tmp_path / name).write_bytes(content)
        for arguments in (
            ("quantize", tmp_path / name, tmp_path / "o.gguf", "q4_0"),
            ("inspect", tmp_path / name),
            ("bench", tmp_path / name),
            ("calibrate", tmp_path / name, "-f", EXAMPLE / "calibration.txt", "-o", tmp_path / "i.gguf"),
        ):
            assert name in failure(*arguments)
    assert files_in(tmp_path) == {"text.gguf", "empty.gguf", "zero.gguf"}


def test_importance_of_another_model_is_refused(tmp_path: Path, example_bf16: Path) -> None:
    other = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(other, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["x"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.ffn_down.weight.in_sum2", np.ones((1, 96), np.float32))
    writer.add_tensor("blk.0.ffn_down.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    line = failure("quantize", example_bf16, tmp_path / "o.gguf", "q4_k_m", "--imatrix", other)
    assert "another model" in line
    line = failure("quantize", example_bf16, tmp_path / "o.gguf", "q4_k_m", "--imatrix", example_bf16)
    assert "importance" in line
    assert files_in(tmp_path) == {"other.gguf"}


def test_a_text_too_short_is_refused(tmp_path: Path, example_bf16: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("And it came to pass.")
    assert "token" in failure("calibrate", example_bf16, "-f", short, "-o", tmp_path / "i.gguf")
    assert "token" in failure("bench", example_bf16, "-f", short, "--raw")
    short.write_text("")
    assert "short.txt" in failure("calibrate", example_bf16, "-f", short, "-o", tmp_path / "i.gguf")
    assert files_in(tmp_path) == {"short.txt"}


def test_no_input_is_ever_overwritten(checkpoint: Path, tmp_path: Path, example_bf16: Path) -> None:
    source, importance = tmp_path / "m.gguf.partial", tmp_path / "i.gguf"
    shutil.copyfile(example_bf16, source)
    shutil.copyfile(Path(__file__).parent / "golden" / "imatrix.gguf", importance)
    text = tmp_path / "t.gguf.partial"
    shutil.copyfile(EXAMPLE / "calibration.txt", text)
    before = {path: path.read_bytes() for path in (source, importance, text, checkpoint / "tokenizer.json")}
    for arguments in (
        ("quantize", source, tmp_path / "m.gguf", "q8_0"),
        ("quantize", source, importance, "q8_0", "--imatrix", importance),
        ("convert", checkpoint, "--outfile", checkpoint / "tokenizer.json"),
        ("calibrate", source, "-f", text, "-o", tmp_path / "t.gguf"),
    ):
        assert "overwrite" in failure(*arguments)
    assert {path: path.read_bytes() for path in before} == before


def test_outputs_that_are_no_plain_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "regular file" in failure("convert", EXAMPLE, "--outfile", tmp_path / "pipe")
    assert "cannot write" in failure("convert", EXAMPLE, "--outfile", tmp_path / ("n" * 400))
    assert files_in(tmp_path) == {"pipe"}


def test_inspect_survives_odd_metadata(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": string("gemma4"),
        "general.file_type": numbers(ValueType.INT32, [1, 2]),
        "x.nan": float32(math.nan),
        "x.escape": string("\x1b[31mred"),
    }
    (tmp_path / "odd.gguf").write_bytes(encode_header(metadata, []))
    seen = json.loads(run("inspect", tmp_path / "odd.gguf", "--json").stdout)
    assert seen["metadata"]["x.nan"] is None
    assert seen["file_type"] is None
    assert "\x1b" not in run("inspect", tmp_path / "odd.gguf").stdout


def test_warnings_are_one_line_without_control_characters(tmp_path: Path) -> None:
    checkpoint = tmp_path / "\x1b[31mred\nline"
    shutil.copytree(EXAMPLE, checkpoint, copy_function=shutil.copyfile)
    (checkpoint / "README.md").write_text('---\n"\n---\n')
    arguments = [sys.executable, "-m", "gemma4_quant", "inspect", str(checkpoint)]
    stderr = subprocess.run(arguments, capture_output=True, text=True, check=True).stderr
    assert stderr.startswith("gemma4-quant: warning: the front matter of ")
    assert "[31mred line" in stderr
    assert len(stderr.splitlines()) == 1
    assert "\x1b" not in stderr


def test_a_quantized_source_is_not_quantized_again_unasked(tmp_path: Path) -> None:
    run("quantize", EXAMPLE, tmp_path / "once.gguf", "q8_0")
    assert "--allow-requantize" in failure("quantize", tmp_path / "once.gguf", tmp_path / "twice.gguf", "q4_0")
    again = run("quantize", tmp_path / "once.gguf", tmp_path / "twice.gguf", "q4_0", "--allow-requantize")
    assert again.exit_code == 0
    assert "Q4_0" in again.stdout


@pytest.fixture
def large_gguf(tmp_path: Path) -> Path:
    """A GGUF that takes a few seconds to quantize: 32 tensors of 2048 x 2048."""
    path = tmp_path / "large.gguf"
    writer = gguf.GGUFWriter(path, "gemma4")
    for key, number in (("block_count", 32), ("attention.head_count", 8), ("attention.head_count_kv", 1)):
        writer.add_uint32(f"gemma4.{key}", number)
    rows = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
    for layer in range(32):
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_run_leaves_no_output_and_the_next_one_ends_it(
    large_gguf: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    output, partial = tmp_path / "out.gguf", tmp_path / "out.gguf.partial"
    arguments = [sys.executable, "-m", "gemma4_quant", "quantize", str(large_gguf), str(output), "Q4_K_M"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(process.pid, sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert not output.exists()
    assert "Traceback" not in stderr
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path) == {"large.gguf", "out.gguf"}
    run("quantize", large_gguf, tmp_path / "whole.gguf", "Q4_K_M")
    assert output.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
