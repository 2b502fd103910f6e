"""The report as one HTML file: plots, tables, and what it takes to repeat the run.

Everything it shows comes from files that may be hostile. Templates escape every string, pictures are built as trees,
strings are bounded and free of control characters, and a Content-Security-Policy allows one style sheet, known by its
hash, and nothing else: no script, no request.
"""

import hashlib
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files

from gemma4_quant.measuring.results import BenchResult
from gemma4_quant.report.comparison import RunComparison
from gemma4_quant.report.comparison_text import MAX_ROWS, change_table, condition_lines
from gemma4_quant.report.conditions import command_line, facts, files_table, reference_text, texts_table, warnings
from gemma4_quant.report.figures import Figure
from gemma4_quant.report.numbers import count_text
from gemma4_quant.report.plots.marks import N_SERIES
from gemma4_quant.report.printable import clean
from gemma4_quant.report.quality_figures import chosen, quality_figures
from gemma4_quant.report.sections import Named, cache_tables, divergence_details, named, overview, speed_table
from gemma4_quant.report.speed_figures import speed_figures
from gemma4_quant.report.tables import Table

MAX_BYTES = 1_000_000
"""Most bytes of a page: it must open at once on a telephone, and be taken by mail and chat."""

_MAX_MODELS = (200, 100, 50, 20, 8)


@dataclass(frozen=True)
class Section:
    """A part of the page: plots, then tables."""

    title: str
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Page:
    """All that the template writes, as text and tables; nothing in it is trusted but the figures' markup."""

    title: str
    lead: tuple[str, ...]
    version: str
    warnings: tuple[str, ...]
    summary: tuple[str, ...]
    overview: Table
    comparison: Section | None
    differences: tuple[str, ...]
    sections: tuple[Section, ...]
    command: str
    facts: tuple[tuple[str, str], ...]
    provenance: tuple[Table, ...]


def html_report(result: BenchResult, comparison: RunComparison | None = None) -> str:
    """Return the report as a self-contained HTML document of less than MAX_BYTES.

    comparison: with an earlier run; shown first, what differs in the conditions before everything else.

    Where there are too many models for that, the first ones are shown, and the page says how many are not.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("gemma4_quant.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = _style()
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = environment.get_template("report.html.jinja")
    models = named(result)
    text = ""
    for n_shown in _MAX_MODELS:
        # The style sheet is our own file: the one string besides the figures that is not escaped.
        text = template.render(
            page=_page(result, models, n_shown, comparison), style=Markup(style), style_hash=digest
        )
        if len(text.encode()) < MAX_BYTES:
            break
    return text


def _style() -> str:
    """Return the style sheet, with the rules that give each series its colour."""
    series = "\n".join(
        f"svg .s{n} {{ stroke: var(--s{n}); }} svg .mark.s{n}, svg .band.s{n} {{ fill: var(--s{n}); }}"
        for n in range(N_SERIES)
    )
    text = (files("gemma4_quant.report") / "templates" / "report.css").read_text("utf-8")
    return text.replace("SERIES", series + "\nsvg .mark { stroke: var(--paper); }\nsvg .band { stroke: none; }")


def _page(result: BenchResult, models: tuple[Named, ...], n_shown: int, comparison: RunComparison | None) -> Page:
    shown = models[:n_shown]
    all_shown = () if len(shown) == len(models) else (f"{len(models) - len(shown)} more models are not shown here.",)
    texts = texts_table(result)
    return Page(
        title=_title(models),
        lead=_lead(result),
        version=clean(result.conditions.versions.get("gemma4-quant", "")),
        warnings=(*warnings(result), *all_shown),
        summary=_summary(models),
        overview=overview(result, shown),
        comparison=None if comparison is None else _changes(comparison),
        differences=() if comparison is None else condition_lines(comparison),
        sections=_sections(result, shown),
        command=command_line(result),
        facts=facts(result),
        provenance=(files_table(result), *((texts,) if texts is not None else ())),
    )


def _sections(result: BenchResult, models: tuple[Named, ...]) -> tuple[Section, ...]:
    quality = {figure.name: figure for figure in quality_figures(result, models)}
    divergence = _section("Divergence from the reference", [quality.get("size"), divergence_details(models)])
    found = [
        divergence,
        _section("Domains", [quality.get("domain")]),
        _section("Positions and probabilities", [quality.get("position"), quality.get("probability")]),
        _section("KV cache", cache_tables(models)),
        _section("Speed", [*speed_figures(chosen(models)), speed_table(result, models)]),
    ]
    return tuple(section for section in found if section.figures or section.tables)


def _changes(comparison: RunComparison) -> Section:
    everything, told = change_table(comparison), change_table(comparison, only_told=True)
    tables = (everything,) if len(everything.rows) <= MAX_ROWS else (told, replace(everything, title="All numbers"))
    return Section(f"Compared with the run of {clean(comparison.earlier_started)}", (), tables)


def _section(title: str, parts: Iterable[Figure | Table | None]) -> Section:
    parts = list(parts)
    return Section(
        title,
        tuple(part for part in parts if isinstance(part, Figure)),
        tuple(part for part in parts if isinstance(part, Table)),
    )


def _title(models: tuple[Named, ...]) -> str:
    names = {clean(model.model.file.name) for model in models}
    if len(names) == 1:
        return f"{names.pop()}: {count_text(len(models), 'file')} measured"
    return f"{count_text(len(models), 'model')} measured"


def _lead(result: BenchResult) -> tuple[str, ...]:
    conditions = result.conditions
    parts = [f"Compared with {reference_text(result)}" if result.reference is not None else "Without a reference"]
    n_positions = sum(text.n_positions for text in result.texts)
    if n_positions:
        domains = f" of {count_text(len(result.texts), 'domain')}" if len(result.texts) > 1 else ""
        parts.append(f"{count_text(n_positions, 'prediction')}{domains} scored, {conditions.framing}-framed")
    parts.append(f"{conditions.device}, {count_text(conditions.n_threads, 'thread')}")
    parts.append(conditions.started[:10])
    return tuple(map(clean, parts))


def _summary(models: tuple[Named, ...]) -> tuple[str, ...]:
    compared = [model for model in models if model.divergence is not None and not model.model.is_reference]
    front = [model for model in compared if model.on_front]
    lines = []
    if len(compared) > 1:
        least = min(front, key=lambda model: model.divergence or 0.0)
        lines.append(
            f"◆ marks the files that no other beats in both size and divergence: {len(front)} of {len(compared)} "
            f"compared. Closest to the reference is {least.name}."
        )
    n_chosen = len(chosen(models))
    if n_chosen < len(models):
        lines.append(f"Plots with a legend show {n_chosen} of {len(models)}, spread over sizes; tables show all.")
    lines.append("± is one standard error, of speeds the standard deviation of repetitions.")
    return tuple(lines)
