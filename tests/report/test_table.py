"""What bench prints: within the width, aligned, with every measure that issue and option ask for, and its notes."""

import re
from dataclasses import replace

import pytest
import report_results
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.measuring.speed import speed_of
from gemma4_quant.report.numbers import interval_text, number_cell, size_text
from gemma4_quant.report.plain import escaped_markdown, plain_table
from gemma4_quant.report.table import bench_table
from gemma4_quant.report.tables import Cell, Column, Row, Table


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_wider_than_asked(width):
    text = bench_table(report_results.bench_result(6), width)
    assert max(map(len, text.splitlines())) <= width


def test_every_measure_has_its_column_and_every_model_its_row():
    result = report_results.bench_result(4)
    text = bench_table(result)
    for title in (
        "size", "bits per", "weight", "perplexity", "KL mean", "KL median", "KL 99 %", "KL 99.9 %", "KL max",
        "same top", "Δp RMS", "pp512", "tg128", "memory",
    ):  # fmt: skip
        assert re.search(rf"  {re.escape(title)}(  |\n|$)", text), title
    for model in result.models:
        assert text.count(f"{model.file.path.stem} ") >= 2  # one row in each of the two tables


def test_values_stand_with_their_errors_in_the_units_of_their_columns():
    text = bench_table(report_results.bench_result(5))
    row = next(line for line in text.splitlines() if line.startswith("E2B-Q4_K_M"))
    assert "6.10 ±0.18" in row  # 0.0061 nat in thousandths, error 3 %
    assert "2.64" in row  # GiB of 4.65e9 weights with 4.88 bits


def test_columns_of_a_table_are_aligned_at_the_right():
    block = bench_table(report_results.bench_result(4)).split("\n\n")[0].splitlines()
    rule = next(line for line in block if set(line) <= {"-", " "})
    ends = [match.end() for match in re.finditer("-+", rule)]
    for line in block:
        assert all(len(line) <= end or line[end] == " " for end in ends)


def test_notes_say_framing_reference_device_versions_and_what_errors_are():
    text = bench_table(report_results.bench_result(2), 200)
    assert "25,500 predictions scored, turn-framed" in text
    assert "reference: E2B-BF16.gguf" in text
    assert "CPU, 8 threads, gemma4-quant 0.1.0, llama-cpp-python 0.3.36" in text
    assert "± is one standard error, of speeds the deviation of repetitions" in text


def test_warnings_forced_mismatches_and_failures_are_told():
    result = report_results.bench_result(2)
    models = (*result.models[:2], replace(result.models[2], failure="decode error at chunk 3"))
    reference = replace(result.reference, forced=("another template",))
    text = bench_table(replace(result, models=models, reference=reference, warnings=("raw text says little",)), 200)
    assert "warning: raw text says little" in text
    assert "another template" in text
    assert "E2B-Q6_K.gguf was not measured completely: decode error at chunk 3" in text


def test_a_drifting_speed_is_marked_and_the_mark_explained():
    result = report_results.bench_result(1)
    calm = bench_table(result)
    model = result.models[1]
    drifting = speed_of(
        model.speeds.speeds[0].counts,
        model.speeds.speeds[0].settings,
        (10**9, 2 * 10**9),
        started="2026-11-24T16:00:00Z",
    )
    speeds = replace(model.speeds, speeds=(drifting, *model.speeds.speeds[1:]))
    text = bench_table(replace(result, models=(result.models[0], replace(model, speeds=speeds))))
    assert "!" not in calm
    assert re.search(r"384 ! ±181", text)  # 512 tokens in one and in two seconds
    assert "! repetitions differ by over 10 %" in text


def test_without_texts_only_sizes_and_speeds_are_shown():
    result = report_results.bench_result(1)
    models = tuple(replace(model, score=None) for model in result.models)
    text = bench_table(replace(result, models=models, texts=(), reference=None))
    assert "perplexity" not in text
    assert "KL" not in text
    assert "pp512" in text
    assert "± is the deviation of repetitions" in text


def test_many_rows_by_domain_are_left_to_the_report():
    assert "65 rows by domain are in --report and --format" in bench_table(report_results.bench_result(13))


def test_no_control_character_of_a_name_reaches_the_terminal():
    text = bench_table(report_results.hostile_result())
    assert [letter for letter in text if not letter.isprintable() and letter != "\n"] == []


def test_wide_letters_take_two_columns():
    table = Table(
        "", (Column("model"), Column("n")), (Row((Cell("量子化"), Cell("1"))), Row((Cell("abcdef"), Cell("2"))))
    )
    lines = plain_table(table, 80).splitlines()
    assert lines[2] == "量子化  1"
    assert lines[3] == "abcdef  2"


@pytest.mark.parametrize(
    ("value", "error", "significant", "text"),
    [
        (29.6512, 0.4812, 4, "29.65 ±0.48"),
        (0.44621, 0.00512, 3, "0.446 ±0.005"),
        (905.3, 12.0, 3, "905 ±12"),
        (0.0, None, 3, "0.00"),
        (1.5e-9, 2e-10, 3, "1.5e-09 ±2e-10"),
        (98.2345, 0.0712, 4, "98.23 ±0.07"),
        (3.2, 0.0, 3, "3.20"),
        (float("nan"), 1.0, 3, "-"),
        (None, None, 3, "-"),
        (2.0, float("inf"), 3, "2.00"),
        (-0.0927, 0.3065, 3, "-0.09 ±0.31"),
        (0.0, 12.3, 3, "0 ±12"),
    ],
)
def test_numbers_have_the_digits_that_their_errors_leave(value, error, significant, text):
    assert str(number_cell(value, error, significant=significant)) == text


@given(low=st.floats(0, 1e6), high=st.floats(0, 1e6))
def test_ends_of_an_interval_read_in_order(low, high):
    low, high = min(low, high), max(low, high)
    first, last = interval_text(low, high).split(" to ")
    assert float(first) <= float(last)
    assert float(first) == pytest.approx(low, abs=max(0.006 * high, 1e-4))
    assert float(last) == pytest.approx(high, abs=max(0.006 * high, 1e-4))


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (2048, "2.00 KiB"), (4_550_000, "4.34 MiB"), (9_300_000_000, "8.66 GiB")],
)
def test_sizes_are_in_binary_units(n_bytes, text):
    assert size_text(n_bytes) == text


@given(text=st.text(max_size=60))
def test_escaped_markdown_is_one_line_without_live_marks(text):
    escaped = escaped_markdown(text)
    assert "\n" not in escaped
    assert not set(re.sub("&#[0-9]+;", "", escaped)) & set("<>|`*[]\\~$@&#")
