"""bench's options for results, on a real run: what each writes, and what is refused before anything is measured."""

import csv
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from checkpoints import EXAMPLE
from huggingface_hub import ModelCard
from typer.testing import CliRunner, Result

from gemma4_quant.cli.app import app
from gemma4_quant.ggml import FileType
from gemma4_quant.measuring.result_files import read_results
from gemma4_quant.quantization import quantize
from gemma4_quant.report.quality_rows import field_types

CHATS = EXAMPLE / "evaluation_chat.jsonl"
FEW = ("-c", "128", "--chunks", "3", "-p", "8", "-n", "2", "--repetitions", "1", "-t", "1")


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def models(example_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The example, and a quantization of it."""
    output = tmp_path_factory.mktemp("report") / "example-Q4_0.gguf"
    return example_bf16, quantize(example_bf16, output, file_type=FileType.Q4_0).path


@pytest.fixture(scope="module")
def folder(models: tuple[Path, Path]) -> Path:
    """Where one run has left its report, model card and JSON."""
    reference, quantized = models
    folder = quantized.parent
    result = bench(
        quantized, reference, "--reference", reference, "-f", f"chat={CHATS}", *FEW,
        "--report", folder / "report.html", "--model-card", folder / "README.md", "--format", "json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (folder / "run.json").write_text(result.stdout)
    return folder


def test_the_report_is_one_page_with_the_run_in_it(folder: Path):
    page = (folder / "report.html").read_text()
    HTMLParser().feed(page)
    run = read_results(folder / "run.json")
    for model in run.models:
        assert model.file.files[0].sha256 in page
    assert "Divergence against size" in page
    assert len(page.encode()) < 1_000_000


def test_the_model_card_is_read_by_the_hub_and_names_the_file(folder: Path):
    card = ModelCard((folder / "README.md").read_text())
    assert "gemma4" in card.data.to_dict()["tags"]
    assert "| example-Q4_0 | Q4_0 |" in card.text


def test_nothing_else_is_left_behind(folder: Path):
    assert {path.name for path in folder.iterdir()} == {"report.html", "README.md", "run.json", "example-Q4_0.gguf"}


def test_json_is_a_result_that_a_later_run_is_compared_with(folder: Path, models: tuple[Path, Path]):
    reference, quantized = models
    result = bench(
        quantized, reference, "--reference", reference, "-f", f"chat={CHATS}", *FEW, "--compare", folder / "run.json"
    )
    assert result.exit_code == 0, result.output
    table, comparison = result.stdout.split("compared with the run of ")
    assert "KL mean" in table
    row = next(line for line in comparison.splitlines() if line.startswith("example-Q4_0  KL mean"))
    assert row.endswith("equal")  # the same weights on the same tokens
    assert "The same files in both runs: example-Q4_0" in comparison


def test_formats_are_written_to_standard_output_and_error(models: tuple[Path, Path]):
    reference, quantized = models
    result = bench(
        quantized, "--reference", reference, "-f", f"chat={CHATS}", "-c", "128", "--chunks", "2", "-p", "0",
        "-n", "0", "-t", "1", "--format", "csv", "-oe", "jsonl",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (row,) = csv.DictReader(io.StringIO(result.stdout))
    (line,) = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert list(row) == list(line) == list(field_types())
    assert float(row["kl_mean"]) == line["kl_mean"] > 0
    assert line["framing"] == "turn"


def test_speed_alone_is_written_as_by_llama_bench(models: tuple[Path, Path]):
    result = bench(models[1], "--no-score", "-p", "8", "-n", "2", "--repetitions", "1", "-t", "1", "-o", "json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(8, 0), (0, 2)]
    assert {"build_commit", "avg_ts", "samples_ns"} <= set(rows[0])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--format", "xml"), "xml"),
        (("--json", "--format", "csv"), "--json"),
        (("--format", "csv", "--compare", "old.json"), "comparison"),
        (("--json", "--compare", "old.json"), "comparison"),
        (("--report", "a", "--model-card", "a"), "names"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(models: tuple[Path, Path], arguments, complaint):
    result = bench(models[1], "--no-score", *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_a_report_over_a_model_is_refused_before_anything_is_measured(models: tuple[Path, Path], tmp_path: Path):
    model = tmp_path / "model.gguf"
    shutil.copyfile(models[1], model)
    result = bench(model, "--no-score", "--report", model)
    assert result.exit_code == 1
    assert "overwrite" in result.stderr
    assert "measure" not in result.stderr
    assert model.read_bytes() == models[1].read_bytes()


@pytest.mark.parametrize(
    ("content", "complaint"), [(None, "old.json"), ("{}", "not a bench result"), ("[" * 9999, "old.json")]
)
def test_an_earlier_run_that_cannot_be_read_is_refused_before_anything_is_measured(
    models: tuple[Path, Path], tmp_path: Path, content, complaint
):
    old = tmp_path / "old.json"
    if content is not None:
        old.write_text(content)
    result = bench(models[1], "--no-score", "--compare", old)
    assert result.exit_code == 1
    assert complaint in result.stderr
    assert "measure" not in result.stderr


def test_a_report_in_a_folder_that_is_not_there_is_refused(models: tuple[Path, Path], tmp_path: Path):
    result = bench(models[1], "--no-score", "--report", tmp_path / "nowhere" / "report.html")
    assert result.exit_code == 1
    assert "does not exist" in result.stderr
