"""Formats for programs: each is read back by a reader that is not ours, and says the same numbers."""

import csv
import io
import json
import re
import sqlite3
from dataclasses import replace

import pytest
import report_results

from gemma4_quant.measuring.result_files import from_json
from gemma4_quant.report.formats import TABLE_NAME, formatted
from gemma4_quant.report.quality_rows import field_types
from gemma4_quant.report.speed_formats import SpeedFormat, speed_text

RESULT = report_results.bench_result(3)
ROWS = [json.loads(line) for line in formatted(RESULT, SpeedFormat.JSONL).splitlines()]


def from_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def from_sql(text):
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    database.executescript(text)
    return [dict(row) for row in database.execute(f"SELECT * FROM {TABLE_NAME}")], database


def speeds_only(result):
    return replace(
        result, models=tuple(replace(model, score=None) for model in result.models), texts=(), reference=None
    )


def test_there_is_a_row_for_each_model_over_all_and_for_each_of_its_domains():
    found = [(row["model_filename"], row["domain"]) for row in ROWS]
    expected = [
        (str(model.file.path), domain)
        for model in RESULT.models
        for domain in ("all", *(text.domain for text in RESULT.texts))
    ]
    assert found == expected


def test_rows_hold_values_errors_and_intervals_in_plain_units():
    row = ROWS[6]  # the first quantization over all domains
    divergence = RESULT.models[1].score.overall.divergence
    assert row["kl_mean"] == divergence.kl.mean.value == pytest.approx(0.00021)
    assert (row["kl_mean_low"], row["kl_mean_high"]) == (divergence.kl.mean.low, divergence.kl.mean.high)
    assert row["kl_mean_error"] == divergence.kl.mean.error
    assert row["kl_max_error"] is None
    assert row["same_top"] == divergence.same_top.value < 1
    assert row["model_size"] == RESULT.models[1].file.n_bytes
    assert row["model_sha256"] == RESULT.models[1].file.files[0].sha256
    assert row["reference_sha256"] == RESULT.models[0].file.files[0].sha256
    assert row["gen_test"] == "tg128"
    assert row["gen_avg_ts"] == RESULT.models[1].speeds.speeds[1].tokens_per_second


def test_each_pair_of_cache_types_has_a_row():
    matrix = report_results.cache_matrix()
    result = replace(RESULT, models=(RESULT.models[0], replace(RESULT.models[1], cache=matrix)))
    rows = from_csv(formatted(result, SpeedFormat.CSV))
    caches = [row for row in rows if row["kind"] == "cache"]
    assert [(row["type_k"], row["type_v"]) for row in caches] == [(c.key_type, c.value_type) for c in matrix.cells]
    assert [int(row["cache_bytes"]) for row in caches] == [cell.cache_bytes for cell in matrix.cells]
    assert {row["n_ctx"] for row in caches} == {str(matrix.n_ctx)}
    assert float(caches[5]["kl_mean"]) == matrix.cells[5].score.divergence.kl.mean.value


def test_the_reference_has_no_divergence():
    assert ROWS[0]["is_reference"] == 1
    assert ROWS[0]["kl_mean"] is None
    assert ROWS[0]["perplexity"] > 0


def test_every_row_has_every_field_in_one_order_and_of_its_type():
    types = field_types()
    for row in ROWS:
        assert list(row) == list(types)
        for name, value in row.items():
            assert value is None or isinstance(value, types[name]), name


def test_csv_says_the_same_as_json_lines():
    rows = from_csv(formatted(RESULT, SpeedFormat.CSV))
    types = field_types()
    assert [{name: types[name](text) if text else None for name, text in row.items()} for row in rows] == ROWS


def test_sql_says_the_same_as_json_lines_and_has_the_speeds_of_llama_bench():
    rows, database = from_sql(formatted(RESULT, SpeedFormat.SQL))
    assert rows == ROWS
    (count,) = database.execute("SELECT COUNT(*) FROM llama_bench").fetchone()
    assert count == sum(len(model.speeds.speeds) for model in RESULT.models)


def test_json_is_the_whole_result_and_is_read_back():
    assert from_json(formatted(RESULT, SpeedFormat.JSON)) == RESULT


def test_markdown_has_a_table_whose_rows_have_as_many_cells_as_its_head():
    text = formatted(RESULT, SpeedFormat.MD)
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 3
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert "| E2B-Q6_K | 3.56 | 6.57 |" in text
    assert "0.710 ±0.021" in text


@pytest.mark.parametrize("output_format", list(SpeedFormat))
def test_speeds_alone_are_written_as_llama_bench_writes_them(output_format):
    result = speeds_only(RESULT)
    assert formatted(result, output_format) == speed_text([model.speeds for model in result.models], output_format)


HOSTILE = report_results.hostile_result()


def test_hostile_names_do_not_break_out_of_sql():
    rows, database = from_sql(formatted(HOSTILE, SpeedFormat.SQL))
    assert len(rows) == len(HOSTILE.models) * (1 + len(HOSTILE.texts)) + 1  # one pair of caches
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    assert tables == {TABLE_NAME, "llama_bench"}
    assert "'; DROP TABLE quality; --" in {row["domain"] for row in rows}


def test_hostile_names_stay_in_their_cells_of_csv_and_are_no_formulas():
    rows = from_csv(formatted(HOSTILE, SpeedFormat.CSV))
    assert all(set(row) == set(field_types()) for row in rows)
    assert any(row["model_name"].startswith("'=HYPERLINK") for row in rows)
    assert not any(text[:1] in "=+@" for row in rows for text in row.values() if text)


def test_hostile_names_stay_in_their_cells_of_markdown():
    text = formatted(HOSTILE, SpeedFormat.MD).split("\n\n| model  ")[0]  # llama-bench's table follows
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    assert not re.search(r"[<>`]", text.replace("> **Warning**", ""))
    assert "](" not in text
    assert "://" not in text


def test_json_lines_of_hostile_names_are_lines_of_json():
    for line in formatted(HOSTILE, SpeedFormat.JSONL).splitlines():
        json.loads(line)


@pytest.mark.parametrize("output_format", list(SpeedFormat))
def test_numbers_that_are_not_finite_are_missing(output_format):
    text = formatted(report_results.with_broken_numbers(RESULT), output_format)
    assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", text)


def test_a_model_that_was_not_scored_has_a_row_that_says_why():
    broken = replace(RESULT.models[2], score=None, failure="decode error")
    result = replace(RESULT, models=(*RESULT.models[:2], broken, RESULT.models[3]))
    rows = [json.loads(line) for line in formatted(result, SpeedFormat.JSONL).splitlines()]
    (row,) = [row for row in rows if row["model_filename"] == str(broken.file.path)]
    assert row["failure"] == "decode error"
    assert row["domain"] is None
    assert row["kl_mean"] is None
