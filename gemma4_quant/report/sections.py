"""The tables of a report: what was measured, in words and cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from gemma4_quant.measuring.results import BenchResult, CacheMatrix, ModelResult, TextScore
from gemma4_quant.report.measures import (
    DELTA_P_RMS,
    DIVERGENCES,
    KL_95,
    KL_99,
    KL_99_9,
    KL_MAX,
    KL_MEAN,
    KL_MEDIAN,
    LOG_RATIO,
    PERPLEXITY,
    SAME_TOP,
    Measure,
)
from gemma4_quant.report.names import file_names
from gemma4_quant.report.numbers import UNKNOWN, number_cell, size_unit
from gemma4_quant.report.plots.front import pareto_front
from gemma4_quant.report.printable import clean
from gemma4_quant.report.speeds import all_speeds, drift_notes, main_tests, settings_texts, speed_named, written_speed
from gemma4_quant.report.tables import Cell, Column, Row, Table

REFERENCE = "reference"
_MODEL = Column("model", is_text=True)


@dataclass(frozen=True)
class Named:
    """A model's results and its name in the report. on_front: whether no other beats it in both size and KL."""

    name: str
    model: ModelResult
    on_front: bool

    @property
    def overall(self) -> TextScore | None:
        """Return what it scored on all texts."""
        return None if self.model.score is None else self.model.score.overall

    @property
    def divergence(self) -> float | None:
        """Return its mean divergence in nats, None where there is none."""
        divergence = None if self.overall is None else self.overall.divergence
        mean = None if divergence is None else divergence.kl.mean.value
        return mean if mean is not None and isfinite(mean) else None


def named(result: BenchResult) -> tuple[Named, ...]:
    """Name the models of a result, and find those on the Pareto front of size and divergence."""
    names = file_names([model.file.path for model in result.models])
    plain = [Named(name, model, False) for name, model in zip(names, result.models, strict=True)]
    compared = [each for each in plain if each.divergence is not None and not each.model.is_reference]
    front = pareto_front(
        [each.model.file.n_bytes for each in compared], [each.divergence or 0.0 for each in compared]
    )
    best = {compared[i].name for i in front}
    return tuple(Named(each.name, each.model, each.name in best) for each in plain)


def measure_cell(model: Named, measure: Measure) -> Cell:
    """Write a measure of all texts; a divergence of the reference itself is `reference`."""
    if model.model.is_reference and measure in DIVERGENCES:
        return Cell(REFERENCE)
    return measure.cell(model.overall)


def overview(result: BenchResult, models: Sequence[Named]) -> Table:
    """Return the table of what people look for first; columns of what was not measured are left out."""
    return _measured(result, models, (KL_MEAN, SAME_TOP, DELTA_P_RMS), (), "peak memory")


def full_table(result: BenchResult, models: Sequence[Named]) -> Table:
    """Return one table of all that was measured; columns of what was not measured are left out."""
    return _measured(result, models, (KL_MEAN, SAME_TOP, DELTA_P_RMS), (KL_MEDIAN, KL_99, KL_99_9, KL_MAX), "memory")


def _measured(
    result: BenchResult,
    models: Sequence[Named],
    first: tuple[Measure, ...],
    more: tuple[Measure, ...],
    memory_title: str,
) -> Table:
    tests = main_tests(result).names
    scored = (PERPLEXITY,) if any(model.overall is not None for model in models) else ()
    compared = (*first, *more) if any(model.divergence is not None for model in models) else ()
    size = size_unit(model.model.file.n_bytes for model in models)
    peaks = [model.model.peak_bytes for model in models]
    memory = size_unit(peaks) if any(peak is not None for peak in peaks) else None
    columns = [_MODEL, Column("size", size.name), Column("bits per weight")]
    columns += [measure.column for measure in (*scored, *compared)]
    columns += [Column(test, "tokens/s") for test in tests]
    columns += [Column(memory_title, memory.name)] if memory is not None else []
    rows = []
    for model in models:
        cells = [
            Cell(model.name),
            size.cell(model.model.file.n_bytes),
            Cell(f"{model.model.file.bits_per_weight:.2f}"),
        ]
        cells += [measure_cell(model, measure) for measure in (*scored, *compared)]
        cells += [written_speed(speed_named(model.model, test)) for test in tests]
        cells += [memory.cell(model.model.peak_bytes)] if memory is not None else []
        rows.append(Row(tuple(cells), model.on_front))
    return Table("All models", tuple(columns), tuple(rows), drift_notes(result))


def divergence_details(models: Sequence[Named]) -> Table | None:
    """Return percentiles of the divergence and the interval of its mean; None when nothing was compared."""
    if not any(model.divergence is not None for model in models):
        return None
    shown = (KL_MEDIAN, KL_95, KL_99, KL_99_9, KL_MAX, LOG_RATIO)
    columns = (_MODEL, Column(f"{KL_MEAN.title} interval", KL_MEAN.unit), *(measure.column for measure in shown))
    rows = tuple(
        Row(
            (Cell(model.name), KL_MEAN.interval(model.overall), *(measure_cell(model, each) for each in shown)),
            model.on_front,
        )
        for model in models
        if model.divergence is not None and not model.model.is_reference
    )
    return known(Table("Divergence in detail", columns, rows))


def domain_table(result: BenchResult, models: Sequence[Named]) -> Table:
    """Return a row for each domain and model."""
    compared = any(model.divergence is not None for model in models)
    shown = (PERPLEXITY, KL_MEAN, SAME_TOP) if compared else (PERPLEXITY,)
    of_interval = KL_MEAN if compared else PERPLEXITY
    rows = []
    for text in result.texts:
        for model in models:
            score = domain_score(model.model, text.domain)
            if score is None or (compared and score.divergence is None):
                continue
            cells = (Cell(clean(text.domain)), Cell(model.name), *(each.cell(score) for each in shown))
            rows.append(Row((*cells, of_interval.interval(score), Cell(f"{score.n_documents:,}")), model.on_front))
    columns = (
        Column("domain", is_text=True),
        _MODEL,
        *(each.column for each in shown),
        Column(f"{of_interval.title} interval", of_interval.unit),
        Column("documents"),
    )
    return known(Table("By domain", columns, tuple(rows)))


def known(table: Table) -> Table:
    """Return a table without the columns in which nothing is known, such as intervals where documents are few."""
    kept = [i for i in range(len(table.columns)) if i == 0 or any(row.cells[i].text != UNKNOWN for row in table.rows)]
    return table.only(tuple(kept))


def domain_score(model: ModelResult, domain: str) -> TextScore | None:
    """Return what a model scored on a domain."""
    domains = () if model.score is None else model.score.domains
    return next((each.score for each in domains if each.domain == domain), None)


def cache_tables(models: Sequence[Named]) -> list[Table]:
    """Return, for each model whose KV cache was varied, what each pair of types costs and loses."""
    return [_cache_table(model.name, model.model.cache) for model in models if model.model.cache is not None]


def _cache_table(name: str, matrix: CacheMatrix) -> Table:
    shown = (PERPLEXITY, KL_MEAN, KL_99, SAME_TOP)
    unit = size_unit(cell.cache_bytes for cell in matrix.cells)
    rows = tuple(
        Row(
            (
                Cell(f"{clean(cell.key_type)} / {clean(cell.value_type)}"),
                unit.cell(cell.cache_bytes),
                *(Cell(REFERENCE) if i == 0 and each in DIVERGENCES else each.cell(cell.score) for each in shown),
            )
        )
        for i, cell in enumerate(matrix.cells)
    )
    columns = (Column("K / V cache", is_text=True), Column("cache", unit.name), *(each.column for each in shown))
    note = f"{matrix.n_chunks} chunks of {matrix.n_ctx:,} tokens; divergence is that from the first row."
    return Table(f"KV cache of {name}", columns, rows, (note,))


def speed_table(result: BenchResult, models: Sequence[Named]) -> Table | None:
    """Return every speed test with its repetitions and memory; None when no speed was measured."""
    speeds = all_speeds(model.model for model in models)
    if not speeds:
        return None
    settings = settings_texts(speeds)
    with_settings = any(settings.values())
    unit = size_unit(speed.peak_bytes for speed in speeds)
    rows = []
    for model in models:
        for speed in all_speeds([model.model]):
            cells = [Cell(model.name), Cell(speed.test)]
            cells += [Cell(settings[speed])] if with_settings else []
            cells += [
                written_speed(speed),
                Cell(str(len(speed.samples))),
                number_cell(100 * speed.drift, significant=2),
                unit.cell(speed.peak_bytes),
            ]
            rows.append(Row(tuple(cells), model.on_front))
    columns = (
        _MODEL,
        Column("test", is_text=True),
        *((Column("settings", is_text=True),) if with_settings else ()),
        Column("speed", "tokens/s"),
        Column("runs"),
        Column("drift", "%"),
        Column("memory", unit.name),
    )
    return Table("Speed tests", columns, tuple(rows), drift_notes(result))
