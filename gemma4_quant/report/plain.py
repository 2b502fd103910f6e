"""Tables as plain text for a terminal, and as Markdown."""

import re
from collections.abc import Sequence
from unicodedata import combining, east_asian_width

from gemma4_quant.report.tables import Column, Table

_GAP = "  "
# Links are made of addresses too, and of names after an @; formulas are set between dollar signs.
_SPECIAL = re.compile(r"[&<>|`*\[\]\\~#$@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def plain_table(table: Table, width: int) -> str:
    """Write a table as plain text of at most `width` columns where its cells allow that.

    What does not fit goes into further tables below, each with the first column again. Numbers are aligned at the
    right, words at the left.
    """
    return "\n\n".join(_block(table.only(part)) for part in _parts(table, width))


def markdown_table(table: Table) -> str:
    """Write a table as GitHub-flavoured Markdown, its cells escaped."""
    head = [escaped_markdown(column.heading) for column in table.columns]
    rule = ["---" if _is_left(i, column) else "---:" for i, column in enumerate(table.columns)]
    rows = [[escaped_markdown(str(cell)) for cell in row.cells] for row in table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def escaped_markdown(text: str) -> str:
    """Escape what Markdown, its extensions on GitHub and the Hub, or HTML within it would take for their own.

    The text stays one line. An underscore within a word, as in Q4_K_M, means nothing and is left alone.
    """
    return _SPECIAL.sub(lambda found: "".join(f"&#{ord(letter)};" for letter in found[0]), " ".join(text.split()))


def _parts(table: Table, width: int) -> list[tuple[int, ...]]:
    widths = _widths(table)
    parts: list[list[int]] = [[0]]
    used = widths[0]
    for i in range(1, len(widths)):
        needed = len(_GAP) + widths[i]
        if used + needed > width and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0]
        parts[-1].append(i)
        used += needed
    return [tuple(part) for part in parts]


def _block(table: Table) -> str:
    widths = _widths(table)
    heads = [_heading(column) for column in table.columns]
    lines = [[first for first, _ in heads], [second for _, second in heads]]
    lines = [line for line in lines if any(line)]
    lines.append(["-" * width for width in widths])
    lines += [[str(cell) for cell in row.cells] for row in table.rows]
    return "\n".join(_line(line, table.columns, widths) for line in lines)


def _widths(table: Table) -> list[int]:
    return [
        max(1, *map(_columns_of, (*_heading(column), *(str(row.cells[i]) for row in table.rows))))
        for i, column in enumerate(table.columns)
    ]


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = [
        _padded(cell, width, at_right=not _is_left(i, column))
        for i, (cell, column, width) in enumerate(zip(cells, columns, widths, strict=True))
    ]
    return _GAP.join(padded).rstrip()


def _heading(column: Column) -> tuple[str, str]:
    """Return the two lines of a heading: title and unit, or a long title without a unit in two parts."""
    if column.unit or len(column.title) < 12:
        return column.title, column.unit
    first, _, second = column.title.rpartition(" ")
    return (first, second) if first else (second, "")


def _padded(cell: str, width: int, *, at_right: bool) -> str:
    room = " " * (width - _columns_of(cell))
    return room + cell if at_right else cell + room


def _columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese, Japanese and Korean letters take two."""
    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def _is_left(i: int, column: Column) -> bool:
    return i == 0 or column.is_text
