"""What bench prints: one table of all that was measured, domains and caches below, and what the numbers rest on."""

import textwrap
from collections.abc import Iterator

from gemma4_quant.measuring.results import BenchResult
from gemma4_quant.report.conditions import reference_text, warnings
from gemma4_quant.report.numbers import count_text
from gemma4_quant.report.plain import plain_table
from gemma4_quant.report.printable import clean, cut
from gemma4_quant.report.sections import Named, cache_tables, domain_table, full_table, named
from gemma4_quant.report.speeds import all_speeds, drift_notes
from gemma4_quant.report.tables import Cell, Row, Table

WIDTH = 100
"""Columns; a table that needs more is continued below."""

_MAX_NAME = 22
_MAX_ROWS = 48
"""Rows of a table by domain; more are left to the report and to --format."""


def bench_table(result: BenchResult, width: int = WIDTH) -> str:
    """Return results as text of at most `width` columns, where a single word is not longer."""
    models = named(result)
    blocks = [plain_table(_short(full_table(result, models)), width), *_more_tables(result, models, width)]
    wrapped = [line for note in _notes(result) for line in textwrap.wrap(note, width, subsequent_indent="  ")]
    return "\n\n".join([*blocks, "\n".join(wrapped)])


def _more_tables(result: BenchResult, models: tuple[Named, ...], width: int) -> Iterator[str]:
    if len(result.texts) > 1:
        table = domain_table(result, models)
        if len(table.rows) <= _MAX_ROWS:
            yield plain_table(_short(table), width)
        else:
            yield f"{count_text(len(table.rows), 'row')} by domain are in --report and --format."
    for table in cache_tables(models):
        yield "\n".join([table.title, plain_table(table, width), *table.notes])


def _notes(result: BenchResult) -> Iterator[str]:
    conditions = result.conditions
    if result.texts:
        n_documents = sum(text.n_documents for text in result.texts)
        n_positions = sum(text.n_positions for text in result.texts)
        yield (
            f"text: {', '.join(clean(text.domain) for text in result.texts)}; {count_text(n_documents, 'document')}, "
            f"{count_text(n_positions, 'prediction')} scored, {conditions.framing}-framed, "
            f"context of {conditions.n_ctx:,} tokens"
        )
    if result.reference is not None:
        yield f"reference: {clean(reference_text(result) or '')}"
    versions = ", ".join(f"{name} {version}" for name, version in conditions.versions.items() if name != "system")
    yield clean(f"device: {conditions.device}, {count_text(conditions.n_threads, 'thread')}, {versions}")
    yield from _error_notes(result)
    yield from drift_notes(result)
    yield from (f"warning: {text}" for text in warnings(result))


def _error_notes(result: BenchResult) -> Iterator[str]:
    if any(model.peak_bytes is not None for model in result.models):
        yield "memory: the most that was taken while a model ran"
    deviation = "the deviation of repetitions"
    with_speeds = bool(all_speeds(result.models))
    if result.texts:
        yield "± is one standard error" + (f", of speeds {deviation}" if with_speeds else "")
        confidence = 100 * result.conditions.confidence
        yield f"intervals: {confidence:.4g} %, by bootstrap over documents"
    elif with_speeds:
        yield f"± is {deviation}"


def _short(table: Table) -> Table:
    """Cut the names of models, in whichever column they stand."""
    text = [i for i, column in enumerate(table.columns) if i == 0 or column.is_text]
    rows = tuple(
        Row(
            tuple(
                Cell(cut(cell.text, _MAX_NAME), cell.error) if i in text else cell for i, cell in enumerate(row.cells)
            )
        )
        for row in table.rows
    )
    return Table(table.title, table.columns, rows, table.notes)
