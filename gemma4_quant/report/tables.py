"""Tables as text in cells, which the page, the terminal, Markdown and the model card write each in their way."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column's title and the unit of its numbers, empty for plain ones. is_text: words; is_code: hashes."""

    title: str
    unit: str = ""
    is_text: bool = False
    is_code: bool = False

    @property
    def heading(self) -> str:
        """Return title and unit in one line."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


@dataclass(frozen=True)
class Cell:
    """A text, and the uncertainty of the number that it is."""

    text: str
    error: str = ""

    def __str__(self) -> str:
        """Return both, as one line."""
        return f"{self.text} ±{self.error}" if self.error else self.text


@dataclass(frozen=True)
class Row:
    """Cells; the first names what the row is about. is_best: whether the row deserves the eye (the Pareto front)."""

    cells: tuple[Cell, ...]
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under columns. notes: lines that stand below."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def only(self, wanted: tuple[int, ...]) -> "Table":
        """Return the table with the columns of these indices, in this order."""
        columns = tuple(self.columns[i] for i in wanted)
        rows = tuple(Row(tuple(row.cells[i] for i in wanted), row.is_best) for row in self.rows)
        return Table(self.title, columns, rows, self.notes)
