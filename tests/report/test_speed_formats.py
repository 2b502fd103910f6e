"""Speeds in llama-bench's formats against what llama-bench printed of the same model under the same settings."""

import csv
import dataclasses
import io
import json
import re
import sqlite3
from pathlib import Path

import pytest
from speed_cases import RECORDED, read_plan

from gemma4_quant.measuring.speed import LlamaBuild, ModelSpeeds, speed_of
from gemma4_quant.measuring.speed_plan import SpeedSettings, SpeedTest
from gemma4_quant.measuring.speed_runs import measure_speeds
from gemma4_quant.progress import SilentProgress
from gemma4_quant.report.speed_formats import SpeedFormat, speed_text

TIMES = ("test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts")
RECORDED_BUILD = LlamaBuild("0c1e570", 1, "AMD EPYC", "", "CPU")


def measured(example_bf16: Path, run: str) -> ModelSpeeds:
    """Run what was recorded; machine and build, which need not be ours, are the recorded ones."""
    found = measure_speeds(example_bf16, read_plan(RECORDED[run]["arguments"]), SilentProgress())
    return dataclasses.replace(found, path=Path("example-BF16.gguf"), build=RECORDED_BUILD)


@pytest.fixture(scope="module")
def defaults(example_bf16):
    return measured(example_bf16, "defaults")


@pytest.fixture(scope="module")
def settings(example_bf16):
    return measured(example_bf16, "settings")


def without_times(row: dict) -> list[tuple]:
    """Return fields in order, each with its type, and no value where it is a time."""
    return [(name, type(value), None if name in TIMES else value) for name, value in row.items()]


@pytest.mark.parametrize("output", ["json", "jsonl"])
def test_json_has_the_fields_of_llama_bench_in_its_order(defaults, output):
    def rows(text):
        return json.loads(text) if output == "json" else [json.loads(line) for line in text.splitlines()]

    ours, theirs = rows(speed_text([defaults], SpeedFormat(output))), rows(RECORDED["defaults"][output])
    assert [without_times(row) for row in ours] == [without_times(row) for row in theirs]
    for row in ours:
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 2
        assert row["avg_ns"] == sum(row["samples_ns"]) // 2
        assert row["avg_ts"] == pytest.approx(sum(row["samples_ts"]) / 2)


@pytest.mark.parametrize("run", ["defaults", "settings"])
def test_csv_has_the_fields_of_llama_bench_in_its_order(request, run):
    ours = speed_text([request.getfixturevalue(run)], SpeedFormat.CSV)
    theirs = RECORDED[run]["csv"]
    assert ours.splitlines()[0] == theirs.splitlines()[0]
    assert ours.count('"') == theirs.count('"')
    read = [list(csv.DictReader(io.StringIO(text))) for text in (ours, theirs)]
    assert [without_times(row) for row in read[0]] == [without_times(row) for row in read[1]]
    assert all(re.fullmatch(r"\d+\.\d{6}", row["avg_ts"]) for row in read[0])


def test_sql_makes_the_table_of_llama_bench(defaults):
    tables = []
    for text in (speed_text([defaults], SpeedFormat.SQL), RECORDED["defaults"]["sql"]):
        with sqlite3.connect(":memory:") as database:
            database.executescript(text)
            schema = database.execute("SELECT name, type FROM pragma_table_info('llama_bench')").fetchall()
            rows = database.execute("SELECT * FROM llama_bench").fetchall()
        names = [name for name, _ in schema]
        tables.append((schema, [without_times(dict(zip(names, row, strict=True))) for row in rows]))
    assert tables[0] == tables[1]
    assert len(tables[0][1]) == 2


@pytest.mark.parametrize("run", ["defaults", "settings"])
def test_markdown_is_the_table_of_llama_bench_but_for_the_speeds(request, run):
    def lines(text):
        return [
            re.sub(r" +[\d.]+ ± [\d.]+( \\\*)? \|$", " ± |", line) for line in text.splitlines() if line[:2] != "\\*"
        ]

    ours = speed_text([request.getfixturevalue(run)], SpeedFormat.MD)
    assert [line for line in lines(ours) if line] == [line for line in lines(RECORDED[run]["md"]) if line]


def made_up(*, samples_ns: tuple[int, ...], **changes: object) -> ModelSpeeds:
    speed = speed_of(
        SpeedTest(512, 128, 4096), SpeedSettings(n_gpu_layers=20), samples_ns, started="2026-01-01T00:00:00Z"
    )
    model = ModelSpeeds(Path("a.gguf"), "gemma4 26B.A4B", 3 << 30, 4_000_000_000, 8, RECORDED_BUILD, (speed,))
    return dataclasses.replace(model, **changes)


def test_markdown_shows_layers_on_a_gpu_and_large_units():
    build = LlamaBuild("unknown", 0, "Apple M4", "Apple M4", "MTL")
    heading, _, row, *_ = speed_text([made_up(samples_ns=(10**9, 10**9), build=build)], SpeedFormat.MD).splitlines()
    assert "| ngl |" in heading
    assert "threads" not in heading
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        *("gemma4 26B.A4B", "3.00 GiB", "4.00 B", "MTL", "20", "pp512+tg128 @ d4096", "640.00 ± 0.00")
    ]


def test_results_whose_repetitions_drift_are_marked_and_the_mark_explained():
    steady = speed_text([made_up(samples_ns=(10**9, 10**9))], SpeedFormat.MD)
    drifting = speed_text([made_up(samples_ns=(10**9, 12 * 10**8))], SpeedFormat.MD)
    assert "\\*" not in steady
    assert re.search(r"586\.67 ± 75\.42 \\\* \|$", drifting, re.MULTILINE)
    assert "\\* repetitions differ by more than 10%" in drifting


@pytest.mark.parametrize(
    "name", ["'); DROP TABLE llama_bench; --", 'say "so", friend', "two\nlines", "a|b\\", "naïve €"]
)
def test_hostile_names_stay_in_their_field(name):
    model = made_up(samples_ns=(5, 5), path=Path(name), model_type=name)
    assert json.loads(speed_text([model], SpeedFormat.JSON))[0]["model_filename"] == name
    assert json.loads(speed_text([model], SpeedFormat.JSONL))["model_type"] == name
    assert next(csv.DictReader(io.StringIO(speed_text([model], SpeedFormat.CSV))))["model_type"] == name
    with sqlite3.connect(":memory:") as database:
        database.executescript(speed_text([model], SpeedFormat.SQL))
        assert database.execute("SELECT model_filename FROM llama_bench").fetchall() == [(name,)]
    table = [line for line in speed_text([model], SpeedFormat.MD).splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
