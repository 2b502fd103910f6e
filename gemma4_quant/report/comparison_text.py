"""A comparison of two runs as tables and sentences: what differs in the conditions is said first."""

import textwrap

from gemma4_quant.report.comparison import Change, ModelChanges, RunComparison, Verdict
from gemma4_quant.report.numbers import count_text, interval_text, number_cell
from gemma4_quant.report.plain import escaped_markdown, markdown_table, plain_table
from gemma4_quant.report.printable import clean
from gemma4_quant.report.tables import Cell, Column, Row, Table

TOLD_APART = (Verdict.BETTER, Verdict.WORSE)

MAX_ROWS = 40
"""With more rows than these, a terminal is shown only what is told apart."""

LIMITS = {
    "quality": "; perplexity and divergence cannot be compared",
    "divergence": "; divergence cannot be compared",
}


def condition_lines(comparison: RunComparison) -> tuple[str, ...]:
    """Say which conditions differ, and which models only one of the runs measured."""
    lines = [
        f"{each.what}: {each.earlier} earlier, {each.now} now{LIMITS.get(each.limits, '')}"
        for each in comparison.differences
    ]
    lines += [f"only in the earlier run: {', '.join(comparison.gone)}"] if comparison.gone else []
    lines += [f"only in this run: {', '.join(comparison.added)}"] if comparison.added else []
    return tuple(map(clean, lines))


def change_table(comparison: RunComparison, *, only_told: bool = False) -> Table:
    """Return a row for each model and number; only_told: leave out those that are not told apart."""
    rows = tuple(
        _row(model, change)
        for model in comparison.models
        for change in model.changes
        if not only_told or change.verdict in TOLD_APART
    )
    columns = (
        Column("model", is_text=True),
        Column("measure", is_text=True),
        Column("earlier"),
        Column("now"),
        Column("change"),
        Column("interval"),
        Column("verdict", is_text=True),
    )
    return Table(f"Changes since {clean(comparison.earlier_started)}", columns, rows, _notes(comparison))


def comparison_text(comparison: RunComparison, width: int) -> str:
    """Return the comparison as plain text."""
    table = change_table(comparison, only_told=_n_changes(comparison) > MAX_ROWS)
    lines = [f"compared with the run of {clean(comparison.earlier_started)}", *condition_lines(comparison)]
    wrapped = [line for note in table.notes for line in textwrap.wrap(note, width, subsequent_indent="  ")]
    return "\n".join([*lines, "", plain_table(table, width), "", *wrapped])


def comparison_markdown(comparison: RunComparison) -> str:
    """Return the comparison as Markdown."""
    table = change_table(comparison)
    said = "\n".join(f"- {escaped_markdown(line)}" for line in condition_lines(comparison))
    notes = "\n\n".join(map(escaped_markdown, table.notes))
    parts = [f"**{escaped_markdown(table.title)}**", said, markdown_table(table), notes]
    return "\n\n".join(part for part in parts if part)


def _n_changes(comparison: RunComparison) -> int:
    return sum(len(model.changes) for model in comparison.models)


def _row(model: ModelChanges, change: Change) -> Row:
    name = f"{change.name}, {change.unit}" if change.unit else change.name
    change_cell = number_cell(change.change.value, significant=change.significant)
    sign = "+" if change.change.value > 0 else ""
    has_interval = change.change.low < change.change.high
    return Row(
        (
            Cell(model.name),
            Cell(name),
            number_cell(change.earlier, significant=change.significant),
            number_cell(change.now, significant=change.significant),
            Cell("0" if change.change.value == 0 else sign + change_cell.text),
            Cell(interval_text(change.change.low, change.change.high) if has_interval else "-"),
            Cell(change.verdict.value),
        ),
        is_best=False,
    )


def _notes(comparison: RunComparison) -> tuple[str, ...]:
    changes = [change for model in comparison.models for change in model.changes]
    told = [change for change in changes if change.verdict in TOLD_APART]
    same = [model.name for model in comparison.models if model.is_same_file]
    notes = [
        f"{count_text(len(told), 'number')} of {len(changes)} told apart: 0 lies outside of the change's "
        f"{100 * comparison.confidence:.4g} % interval, made of both runs' intervals as if they were independent. "
        "Of speeds, the spread of single repetitions of both; those that drifted are unsteady."
    ]
    if same:
        notes.append(f"The same files in both runs: {', '.join(same)}.")
    return tuple(notes)
