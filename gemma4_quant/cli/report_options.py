"""Options of `bench` that say how its results are shown, and the files that they are written to."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gemma4_quant.measuring.results import BenchResult
    from gemma4_quant.report.comparison import RunComparison
    from gemma4_quant.report.speed_formats import SpeedFormat

_PANEL = "Results"
_FORMATS = ("md", "json", "jsonl", "csv", "sql")

Format = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        "--format",
        metavar="|".join(_FORMATS),
        help="Write results in this format; llama-bench's when only speed was measured [a table].",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
ErrorFormat = Annotated[
    str | None,
    typer.Option(
        "-oe",
        "--output-err",
        metavar="|".join(_FORMATS),
        help="Write results to standard error in this format too.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Write one page with plots and tables, and all it takes to repeat the run.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Card = Annotated[
    Path | None,
    typer.Option(
        "--model-card",
        metavar="FILE.md",
        help="Write a README for a repository of these files on the Hub.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Compare = Annotated[
    Path | None,
    typer.Option(
        "--compare",
        metavar="OLD.json",
        help="Show what changed since an earlier run, which wrote --json.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class Delivery:
    """Where results go; made, and so checked, before anything is measured.

    shown: format of standard output, None for a table; as_json: the whole result as JSON instead. on_error: format
    for standard error too. report, card: files to write. earlier: the run to compare with.
    """

    shown: "SpeedFormat | None"
    as_json: bool
    on_error: "SpeedFormat | None"
    report: Path | None
    card: Path | None
    earlier: "BenchResult | None"

    def comparison(self, result: "BenchResult") -> "RunComparison | None":
        """Return what changed since the earlier run, None without one."""
        if self.earlier is None:
            return None
        from gemma4_quant.report.comparison import compare_runs

        return compare_runs(self.earlier, result)

    @property
    def is_for_programs(self) -> bool:
        """Whether what is shown must reach its reader byte for byte."""
        return self.as_json or self.shown is not None

    def text(self, result: "BenchResult") -> str:
        """Return what goes to standard output."""
        from gemma4_quant.measuring.result_files import to_json
        from gemma4_quant.report.comparison_text import comparison_text
        from gemma4_quant.report.formats import formatted
        from gemma4_quant.report.table import WIDTH, bench_table

        if self.as_json:
            return to_json(result)
        comparison = self.comparison(result)
        if self.shown is not None:
            return formatted(result, self.shown, comparison)
        table = bench_table(result)
        return table if comparison is None else f"{table}\n\n{comparison_text(comparison, WIDTH)}"

    def write_files(self, result: "BenchResult") -> None:
        """Write the report and the model card, and the copy on standard error, as far as they are wanted."""
        from gemma4_quant.report.formats import formatted
        from gemma4_quant.report.text_file import write_text_file

        if self.report is not None:
            from gemma4_quant.report.page import html_report

            write_text_file(self.report, html_report(result, self.comparison(result)))
        if self.card is not None:
            from gemma4_quant.report.model_card import model_card
            from gemma4_quant.report.origin import origins_of

            write_text_file(self.card, model_card(result, origins_of(result)))
        if self.on_error is not None:
            sys.stderr.write(formatted(result, self.on_error) + "\n")


def delivery(
    *,
    output_format: str | None,
    error_format: str | None,
    as_json: bool,
    report: Path | None,
    card: Path | None,
    compare: Path | None,
    inputs: Sequence[Path],
) -> Delivery:
    """Check the options that say where results go; inputs: files that must not be overwritten.

    Raises typer.BadParameter for a format that is not known or cannot show what is asked, OutputError for files that
    cannot be written, ResultsError for an earlier run that cannot be read.
    """
    from gemma4_quant.measuring.result_files import read_results
    from gemma4_quant.report.text_file import check_text_file

    shown = _format(output_format, "--format")
    if as_json and shown is not None:
        raise typer.BadParameter("give one of --json and --format", param_hint="--format")
    if compare is not None and (as_json or output_format not in (None, "md")):
        raise typer.BadParameter(
            "a comparison is shown in the table, with --format md, and in --report", param_hint="--compare"
        )
    if report is not None and card is not None and report.absolute() == card.absolute():
        raise typer.BadParameter("report and model card need names of their own", param_hint="--model-card")
    for path in (report, card):
        if path is not None:
            check_text_file(path, [*inputs, *([compare] if compare is not None else [])])
    return Delivery(
        shown=shown,
        as_json=as_json,
        on_error=_format(error_format, "--output-err"),
        report=report,
        card=card,
        earlier=None if compare is None else read_results(compare),
    )


def _format(name: str | None, option: str) -> "SpeedFormat | None":
    from gemma4_quant.report.speed_formats import SpeedFormat

    if name is None:
        return None
    if name.lower() not in _FORMATS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(_FORMATS)}", param_hint=option)
    return SpeedFormat(name.lower())
