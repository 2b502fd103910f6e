"""`calibrate` as a person meets it: its modes, its options, what it prints and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import EXAMPLE
from typer.testing import CliRunner, Result

from gemma4_quant.calibration import TextSource
from gemma4_quant.calibration.importance import read_importance
from gemma4_quant.cli.app import app
from gemma4_quant.cli.calibrate import _sources

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = EXAMPLE / "calibration.txt"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_without_a_text_the_built_in_corpus_is_used(example_bf16, tmp_path):
    result = run(example_bf16, "-o", tmp_path / "i.gguf", "--chunks", 2, "-c", 128, "-t", 1)
    assert result.exit_code == 0, result.stderr
    assert "text: built-in corpus, turn, framed as turns" in result.stdout
    importance = read_importance(tmp_path / "i.gguf")
    assert (importance.chunk_count, importance.chunk_size) == (2, 128)
    assert "token_embd.weight" in importance.names


def test_llama_imatrix_is_followed_to_the_letter_on_request(example_bf16, tmp_path):
    arguments = ("-f", TEXT, "-o", tmp_path / "i.gguf", "--chunks", 3, "-c", 512, "-t", 1, "--strict-llama")
    assert run(example_bf16, *arguments).exit_code == 0
    importance = read_importance(tmp_path / "i.gguf")
    assert importance.names == read_importance(GOLDEN / "imatrix.gguf").names
    # Three chunks of 512 side by side: llama.cpp computes 3·170 positions at a time, and 3·2 are too few to count.
    assert importance.entries["blk.0.attn_q.weight"].counts[0] == 3 * 510
    assert importance.chunk_count == 2


def test_json_tells_all(example_bf16, tmp_path):
    result = run(example_bf16, "-f", TEXT, "-o", tmp_path / "i.gguf", "--chunks", 2, "-c", 64, "-t", 1, "--json")
    told = json.loads(result.stdout)
    assert told["framings"] == ["raw"]
    assert (told["n_chunks"], told["n_ctx"], told["n_tokens"], told["experts"]) == (2, 64, 128, [])


def test_parts_are_merged_and_formats_changed(tmp_path):
    for n in (1, 2):
        (tmp_path / f"{n}.gguf").write_bytes((GOLDEN / "imatrix-moe.gguf").read_bytes())
    result = run("--merge", tmp_path / "1.gguf", tmp_path / "2.gguf", "-o", tmp_path / "all.gguf")
    assert result.exit_code == 0, result.stderr
    assert "58 tensors from 2 files (12 chunks of 128 tokens)" in result.stdout
    assert "tokens that reached experts (256 are enough):" in result.stdout
    once, twice = read_importance(GOLDEN / "imatrix-moe.gguf"), read_importance(tmp_path / "all.gguf")
    for name, entry in once.entries.items():
        np.testing.assert_array_equal(twice.entries[name].sums, 2 * entry.sums)
    # As llama-imatrix is used: files alone are combined, here into the older format.
    result = run("--in-file", tmp_path / "all.gguf", "-o", tmp_path / "all.dat", "--output-format", "dat")
    assert result.exit_code == 0, result.stderr
    assert read_importance(tmp_path / "all.dat").names == once.names


def test_statistics_are_printed_as_a_table_and_as_json(tmp_path):
    table = run("--show-statistics", GOLDEN / "imatrix.gguf").stdout.splitlines()
    header = "layer tensor sum min max mean sd active % columns entropy of most % outliers % cosine"
    assert " ".join(table[0].split()) == header
    assert table[1].split()[:3] == ["1", "attn_k", "224.73"]
    told = json.loads(run("--show-statistics", "--in-file", GOLDEN / "imatrix.gguf", "--json").stdout)
    assert len(told["tensors"]) == 48
    assert [layer["layer"] for layer in told["layers"]] == list(range(6))
    assert list(tmp_path.iterdir()) == []


def test_sources_may_have_weights_and_names_with_equal_signs(tmp_path):
    odd = tmp_path / "a=2"
    odd.write_text("x", encoding="utf-8")
    sources = _sources(["a.txt", "b.jsonl=2", "c=d.txt", f"{odd}", f"{odd}=0.5"])
    assert sources == [
        TextSource(Path("a.txt")),
        TextSource(Path("b.jsonl"), 2.0),
        TextSource(Path("c=d.txt")),
        TextSource(odd),
        TextSource(odd, 0.5),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.gguf", "b.gguf"), "one model is calibrated at a time"),
        (("--show-statistics",), "one importance file at a time"),
        (("--merge", "a.gguf", "--output-format", "csv"), "use gguf or dat"),
    ],
)
def test_wrong_use_is_explained(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--merge", "{nowhere}"), "cannot open"),
        (("--merge", GOLDEN / "imatrix.gguf", GOLDEN / "imatrix-moe.gguf"), "different models"),
        (("--merge", GOLDEN / "imatrix.gguf", GOLDEN / "imatrix.gguf"), "named twice"),
        (("--show-statistics", TEXT), "not a GGUF file"),
        (
            ("{model}", "-f", TEXT, "--in-file", GOLDEN / "imatrix-moe.gguf", "-c", 64, "--chunks", 1),
            "different models",
        ),
        (("{model}", "-f", TEXT, "--from-chunk", 100000), "none is left"),
        (("{model}", "-f", f"{TEXT}=nan"), "weight of nan"),
        (("{model}", "-f", "{nowhere}"), "nowhere"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(example_bf16, tmp_path, arguments, message):
    named = {"{nowhere}": tmp_path / "nowhere", "{model}": example_bf16}
    result = run(*(named.get(argument, argument) for argument in arguments), "-o", tmp_path / "out.gguf")
    assert result.exit_code == 1, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("gemma4-quant: error: ")]
    assert message in line
    assert list(tmp_path.iterdir()) == []
