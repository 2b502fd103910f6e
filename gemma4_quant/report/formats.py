"""Results of a bench in the formats that programs read; speeds alone are written as llama-bench writes them."""

import csv
import io
import json
from collections.abc import Iterator

from gemma4_quant.errors import InputError
from gemma4_quant.measuring.result_files import to_json
from gemma4_quant.measuring.results import BenchResult
from gemma4_quant.report.comparison import RunComparison
from gemma4_quant.report.comparison_text import comparison_markdown
from gemma4_quant.report.conditions import facts, warnings
from gemma4_quant.report.plain import escaped_markdown, markdown_table
from gemma4_quant.report.printable import printable
from gemma4_quant.report.quality_rows import Value, field_types, quality_rows
from gemma4_quant.report.sections import cache_tables, divergence_details, domain_table, named, overview
from gemma4_quant.report.speed_formats import SpeedFormat, speed_text
from gemma4_quant.report.tables import Table

TABLE_NAME = "gemma4_quant_quality"
"""Of the table that SQL creates; speeds go to llama-bench's."""

_SQL_TYPES = {str: "TEXT", int: "INTEGER", float: "REAL"}
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def formatted(result: BenchResult, output_format: SpeedFormat, comparison: RunComparison | None = None) -> str:
    """Write results in a format, without a line break at the end.

    When no text was scored, what is written is llama-bench's: its columns, its fields. Otherwise JSON is the whole
    result, which `--compare` reads; CSV, JSON lines and SQL have a row for each model and domain (quality_rows.py);
    Markdown and SQL have llama-bench's rows too, in a table of their own.

    comparison: with an earlier run, which Markdown begins with. Raises InputError for it in any other format.
    """
    if comparison is not None and output_format is not SpeedFormat.MD:
        raise InputError(f"a comparison of runs cannot be written as {output_format}; use md, or the report")
    compared = [] if comparison is None else [comparison_markdown(comparison)]
    speeds = [model.speeds for model in result.models if model.speeds is not None]
    if not any(model.score is not None for model in result.models) and speeds:
        return "\n\n".join([*compared, speed_text(speeds, output_format)])
    writers = {
        SpeedFormat.JSON: to_json,
        SpeedFormat.JSONL: _json_lines,
        SpeedFormat.CSV: _csv,
        SpeedFormat.SQL: _sql,
        SpeedFormat.MD: _markdown,
    }
    with_speeds = output_format in (SpeedFormat.MD, SpeedFormat.SQL) and speeds
    parts = [*compared, writers[output_format](result)]
    return "\n\n".join([*parts, speed_text(speeds, output_format)] if with_speeds else parts)


def _json_lines(result: BenchResult) -> str:
    return "\n".join(json.dumps(row, allow_nan=False) for row in quality_rows(result))


def _csv(result: BenchResult) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field_types())
    writer.writerows([_csv_cell(value) for value in row.values()] for row in quality_rows(result))
    return text.getvalue().removesuffix("\n")


def _csv_cell(value: Value) -> Value:
    """Return a cell; text from a file that a spreadsheet would run as a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _sql(result: BenchResult) -> str:
    types = field_types()
    columns = ",\n".join(f"  {name} {_SQL_TYPES[kind]}" for name, kind in types.items())
    lines = [f"CREATE TABLE IF NOT EXISTS {TABLE_NAME} (\n{columns}\n);\n"]
    names = ", ".join(types)
    for row in quality_rows(result):
        values = ", ".join(map(_sql_literal, row.values()))
        lines.append(f"INSERT INTO {TABLE_NAME} ({names}) VALUES ({values});")
    return "\n".join(lines)


def _sql_literal(value: Value) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + printable(value).replace("'", "''") + "'"
    return repr(value)


def _markdown(result: BenchResult) -> str:
    return "\n\n".join([*_markdown_tables(result), *_markdown_notes(result)])


def _markdown_tables(result: BenchResult) -> Iterator[str]:
    models = named(result)
    tables = [overview(result, models), divergence_details(models)]
    tables += [domain_table(result, models)] if len(result.texts) > 1 else []
    for table in [*tables, *cache_tables(models)]:
        if table is not None:
            yield _titled(table)


def _titled(table: Table) -> str:
    notes = "".join(f"\n\n{escaped_markdown(note)}" for note in table.notes)
    return f"**{escaped_markdown(table.title)}**\n\n{markdown_table(table)}{notes}"


def _markdown_notes(result: BenchResult) -> Iterator[str]:
    yield "\n".join(f"- {escaped_markdown(name)}: {escaped_markdown(value)}" for name, value in facts(result))
    found = warnings(result)
    if found:
        yield "\n".join(f"> **Warning**: {escaped_markdown(text)}" for text in found)
