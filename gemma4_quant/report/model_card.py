"""A model card: text for the README of a repository of quantized files on the Hub."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma4_quant.measuring.results import BenchResult
from gemma4_quant.report.choice import FREE_SHARE, choices
from gemma4_quant.report.conditions import command_line, facts, texts_table, types_text, warnings
from gemma4_quant.report.measures import KL_99, KL_MEAN, PERPLEXITY, SAME_TOP
from gemma4_quant.report.numbers import count_text, size_text
from gemma4_quant.report.origin import Origin
from gemma4_quant.report.plain import escaped_markdown, markdown_table
from gemma4_quant.report.printable import clean, printable
from gemma4_quant.report.sections import Named, measure_cell, named
from gemma4_quant.report.speeds import drift_notes, main_tests, speed_named, written_speed
from gemma4_quant.report.tables import Cell, Column, Row, Table


@dataclass(frozen=True)
class Card:
    """What the template writes. Strings are escaped by it; tables are Markdown already, front matter is YAML."""

    front_matter: str
    title: str
    introduction: str
    warnings: tuple[str, ...]
    files: Table
    choices: Table | None
    example: str
    facts: tuple[tuple[str, str], ...]
    texts: Table | None
    making: tuple[str, ...]
    command: str
    hashes: Table


def model_card(result: BenchResult, origins: Mapping[Path, Origin]) -> str:
    """Return a model card; origins: what the files' metadata says, by their paths (those without count as silent)."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # autoescape is HTML's; Markdown's is below, for every value that is not marked
        loader=PackageLoader("gemma4_quant.report", "templates"),
        autoescape=False,
        finalize=_finalized,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(table=_as_table, code=_as_code, yaml=_Marked)
    return environment.get_template("model_card.md.jinja").render(card=_card(result, origins))


class _Marked(str):
    """Text that is Markdown or YAML already."""


def _finalized(value: object) -> str:
    return value if isinstance(value, _Marked) else escaped_markdown(clean(str(value)))


def _as_table(table: Table) -> _Marked:
    return _Marked(markdown_table(table))


def _as_code(text: str) -> _Marked:
    """Return a block of code whose fence is longer than any in the text."""
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return _Marked(f"{fence}sh\n{printable(text)}\n{fence}")


def _card(result: BenchResult, origins: Mapping[Path, Origin]) -> Card:
    models = named(result)
    offered = [model for model in models if not model.model.is_reference] or list(models)
    found = [origins.get(model.model.file.path, Origin()) for model in offered]
    name = clean(offered[0].model.file.name)
    return Card(
        front_matter=_front_matter(found, offered),
        title=f"{name} GGUF",
        introduction=_introduction(name, offered, found),
        warnings=warnings(result),
        files=_files(result, offered),
        choices=_choices(models),
        example=_example(offered),
        facts=facts(result),
        texts=texts_table(result),
        making=_making(offered, found),
        command=command_line(result),
        hashes=_hashes(offered),
    )


def _front_matter(origins: Sequence[Origin], models: Sequence[Named]) -> str:
    """Write the facts that the Hub reads; strings are quoted as JSON, which is YAML."""
    bases = _distinct(base for origin in origins for base in origin.base_models)
    licenses = _distinct(origin.license for origin in origins if origin.license)
    languages = _distinct(language for origin in origins for language in origin.languages)
    architectures = _distinct(clean(model.model.file.architecture) for model in models)
    tags = _distinct(["gguf", "llama.cpp", "quantized", *architectures])
    lines = [f"library_name: {_quoted('gguf')}"]
    lines += [f"license: {_quoted(licenses[0])}"] if len(licenses) == 1 else []
    if bases:
        lines += ["base_model:", *(f"- {_quoted(base)}" for base in bases), "base_model_relation: quantized"]
    lines += ["language:", *(f"- {_quoted(language)}" for language in languages)] if languages else []
    return "\n".join([*lines, "tags:", *(f"- {_quoted(tag)}" for tag in tags)])


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _quoted(text: str) -> str:
    return json.dumps(printable(text), ensure_ascii=False)


def _introduction(name: str, models: Sequence[Named], origins: Sequence[Origin]) -> str:
    bases = _distinct(base for origin in origins for base in origin.base_models)
    made_from = f", made from {' and '.join(bases)}" if bases else ""
    text = f"{name} as {count_text(len(models), 'GGUF file')}{made_from}, for llama.cpp and what builds on it"
    if not any(model.divergence is not None for model in models):
        return f"{text}."
    return f"{text} (Ollama, LM Studio and others), each measured against the full-precision model."


def _files(result: BenchResult, models: Sequence[Named]) -> Table:
    tests = main_tests(result).names
    measures = [PERPLEXITY] if any(model.overall is not None for model in models) else []
    measures += [KL_MEAN, KL_99, SAME_TOP] if any(model.divergence is not None for model in models) else []
    rows = []
    for model in sorted(models, key=lambda each: each.model.file.n_bytes):
        file = model.model.file
        cells = [Cell(model.name), Cell(clean(file.file_type or "-"))]
        cells += [Cell(size_text(file.n_bytes)), Cell(f"{file.bits_per_weight:.2f}")]
        cells += [measure_cell(model, measure) for measure in measures]
        cells += [written_speed(speed_named(model.model, test)) for test in tests]
        rows.append(Row(tuple(cells), model.on_front))
    columns = [Column("file", is_text=True), Column("type", is_text=True), Column("size"), Column("bits per weight")]
    columns += [measure.column for measure in measures]
    columns += [Column(test, "tokens/s") for test in tests]
    return Table("Files", tuple(columns), tuple(rows), drift_notes(result))


def _choices(models: Sequence[Named]) -> Table | None:
    rows = tuple(
        Row(
            (
                Cell(f"{each.memory_gib} GiB or more"),
                Cell(each.model.name),
                Cell(size_text(each.model.model.file.n_bytes)),
                Cell(size_text(each.needed_bytes)),
                measure_cell(each.model, KL_MEAN),
            )
        )
        for each in choices(models)
    )
    columns = (
        Column("memory", is_text=True),
        Column("take", is_text=True),
        Column("size"),
        Column("needed"),
        KL_MEAN.column,
    )
    share = f"{100 * FREE_SHARE:.0f}"
    note = f"The closest file that fits, {share} % of the memory being left to the system and to longer contexts."
    return Table("Which to choose", columns, rows, (note,)) if rows else None


def _example(models: Sequence[Named]) -> str:
    """Return the command that runs one of the files: of those compared the closest, else the first."""
    best = min(models, key=lambda model: float("inf") if model.divergence is None else model.divergence)
    return shlex.join(["llama-server", "--jinja", "-m", printable(best.model.file.path.name)])


def _making(models: Sequence[Named], origins: Sequence[Origin]) -> tuple[str, ...]:
    """Say what each file was made with, files that say the same together."""
    said: dict[str, list[str]] = {}
    for model, origin in zip(models, origins, strict=True):
        parts = []
        parts += [f"gemma4-quant {origin.version}"] if origin.version else []
        parts += [f"from {origin.source}"] if origin.source else []
        if origin.importance_text:
            chunks = f" ({origin.importance_chunks:,} chunks)" if origin.importance_chunks else ""
            parts.append(f"importance measured on {origin.importance_text}{chunks}")
        if parts:
            said.setdefault(", ".join(parts), []).append(model.name)
    return tuple(how if len(names) == len(models) else f"{', '.join(names)}: {how}" for how, names in said.items())


def _hashes(models: Sequence[Named]) -> Table:
    rows = tuple(
        Row(
            (
                Cell(clean(fact.name)),
                Cell(f"{fact.n_bytes:,}"),
                Cell(clean(fact.sha256)),
                Cell(types_text(model.model.file)),
            )
        )
        for model in models
        for fact in model.model.file.files
    )
    texts = (Column("file", is_text=True), Column("SHA-256", is_text=True), Column("weights by type", is_text=True))
    return Table("Hashes", (texts[0], Column("bytes"), texts[1], texts[2]), rows)
