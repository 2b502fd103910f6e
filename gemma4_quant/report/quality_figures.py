"""Figures of quality: what of the scores each plot shows, and the numbers beside it."""

from collections.abc import Sequence
from math import isfinite

from gemma4_quant.measuring.results import BenchResult, PositionBin, TokenPair
from gemma4_quant.report.figures import Figure, figure
from gemma4_quant.report.intervals import interval_of
from gemma4_quant.report.measures import KL_MEAN, PERPLEXITY
from gemma4_quant.report.numbers import count_text, number_cell, size_unit
from gemma4_quant.report.plots.cloud_plot import draw_clouds
from gemma4_quant.report.plots.data import Cloud, Group, LinePoint, Series, SizePoint
from gemma4_quant.report.plots.interval_plot import draw_intervals
from gemma4_quant.report.plots.line_plot import LineStyle, draw_lines
from gemma4_quant.report.plots.marks import N_SERIES
from gemma4_quant.report.plots.size_plot import draw_sizes
from gemma4_quant.report.printable import clean
from gemma4_quant.report.sections import Named, domain_score, domain_table, known
from gemma4_quant.report.tables import Cell, Column, Row, Table

MAX_PAIRS = 400
"""Dots of a panel of token probabilities: more would only cover each other, and make the file large."""

MAX_DOMAINS = 24
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def quality_figures(result: BenchResult, models: Sequence[Named]) -> tuple[Figure, ...]:
    """Return the figures for which there are results; those with lines show at most eight models."""
    confidence = result.conditions.confidence
    compared = [each for each in models if each.divergence is not None and not each.model.is_reference]
    shown = chosen(models)
    if compared:
        shown = tuple(each for each in shown if each in compared)
    found = (
        size_figure(compared, confidence),
        domain_figure(result, shown, models),
        position_figure(shown, confidence),
        probability_figure(shown),
    )
    return tuple(each for each in found if each is not None)


def chosen(models: Sequence[Named]) -> tuple[Named, ...]:
    """Return at most as many models as there are colours: of the Pareto front, spread evenly over it, then others.

    Those that were not compared, such as the reference, come last, so that a model has the same colour in all plots.
    """
    front = sorted((i for i, each in enumerate(models) if each.on_front), key=lambda i: models[i].model.file.n_bytes)
    n_taken = min(N_SERIES, len(front))
    spread = [front[round(k * (len(front) - 1) / max(1, n_taken - 1))] for k in range(n_taken)]
    others = [i for i in range(len(models)) if i not in front]
    others.sort(key=lambda i: models[i].divergence is None or models[i].model.is_reference)
    taken = sorted([*spread, *others][:N_SERIES])
    return tuple(
        models[i] for i in sorted(taken, key=lambda i: models[i].divergence is None or models[i].model.is_reference)
    )


def size_figure(models: Sequence[Named], confidence: float) -> Figure | None:
    """Return divergence against size; None when no model was compared."""
    points = []
    for model in models:
        interval = interval_of(None if model.overall is None else KL_MEAN.of(model.overall), confidence)
        if interval is not None:
            points.append(SizePoint(model.name, model.model.file.n_bytes, interval))
    if not points:
        return None
    n_front = sum(model.on_front for model in models)
    verb = "is" if n_front == 1 else "are"
    description = (
        f"Mean divergence from the reference against file size, for {count_text(len(points), 'file')}; bars are "
        f"intervals. {n_front} {verb} on the Pareto front, the dashed line: no other file is both smaller and closer."
    )
    return figure(
        "size", "Divergence against size", description, _size_table(models), lambda w: draw_sizes(points, w)
    )


def _size_table(models: Sequence[Named]) -> Table:
    unit = size_unit(model.model.file.n_bytes for model in models)
    rows = tuple(
        Row(
            (
                Cell(model.name),
                unit.cell(model.model.file.n_bytes),
                Cell(f"{model.model.file.bits_per_weight:.2f}"),
                KL_MEAN.cell(model.overall),
                KL_MEAN.interval(model.overall),
                Cell("yes" if model.on_front else "no"),
            ),
            model.on_front,
        )
        for model in models
    )
    columns = (
        Column("model"),
        Column("size", unit.name),
        Column("bits per weight"),
        KL_MEAN.column,
        Column("interval", KL_MEAN.unit),
        Column("on the front"),
    )
    return known(Table("Divergence against size", columns, rows))


def domain_figure(result: BenchResult, models: Sequence[Named], all_models: Sequence[Named]) -> Figure | None:
    """Return divergence by domain, or perplexity without a reference; None for fewer than two domains.

    The plot shows `models`, the table beside it `all_models`.
    """
    if len(result.texts) < 2 or not models:
        return None
    measure = KL_MEAN if any(model.divergence is not None for model in models) else PERPLEXITY
    names = [model.name for model in models]
    groups = []
    for domain in dict.fromkeys(text.domain for text in result.texts[:MAX_DOMAINS]):
        scores = [domain_score(model.model, domain) for model in models]
        estimates = [None if score is None else measure.of(score) for score in scores]
        values = tuple(interval_of(each, result.conditions.confidence) for each in estimates)
        groups.append(Group(clean(domain), values))
    title = "Divergence by domain" if measure is KL_MEAN else "Perplexity by domain"
    x_title = "mean KL divergence, nat" if measure is KL_MEAN else "perplexity"
    description = (
        f"{title}, for {count_text(len(models), 'model')} in {count_text(len(groups), 'domain')}; bars are intervals."
    )
    return figure(
        "domain",
        title,
        description,
        domain_table(result, all_models),
        lambda width: draw_intervals(groups, names, x_title, width),
    )


def position_figure(models: Sequence[Named], confidence: float) -> Figure | None:
    """Return divergence by position in the context; None when there are fewer than two bins."""
    series = [Series(model.name, _positions(model, confidence)) for model in models]
    series = [each for each in series if each.points]
    if max((len(each.points) for each in series), default=0) < 2:
        return None
    style = LineStyle("position in the context, tokens", "mean KL divergence, nat", with_bands=True)
    description = (
        f"Mean divergence by position in the context, for {count_text(len(series), 'model')}; bands are intervals."
    )
    return figure(
        "position",
        "Divergence by position",
        description,
        _position_table(models),
        lambda width: draw_lines(series, style, width),
    )


def _bins(model: Named) -> tuple[PositionBin, ...]:
    return () if model.model.score is None else model.model.score.by_position


def _positions(model: Named, confidence: float) -> tuple[LinePoint, ...]:
    intervals = ((each, interval_of(each.kl, confidence)) for each in _bins(model))
    return tuple(LinePoint((each.first + each.last) / 2, found) for each, found in intervals if found is not None)


def _position_table(models: Sequence[Named]) -> Table:
    ranges = sorted({(each.first, each.last) for model in models for each in _bins(model)})
    cells = {(model.name, each.first, each.last): _scaled(each) for model in models for each in _bins(model)}
    rows = tuple(
        Row((Cell(f"{first:,} to {last:,}"), *(cells.get((model.name, first, last), Cell("-")) for model in models)))
        for first, last in ranges
    )
    columns = (Column("positions"), *(Column(model.name, KL_MEAN.unit) for model in models))
    return Table("Divergence by position", columns, rows)


def _scaled(each: PositionBin) -> Cell:
    if each.kl is None:
        return number_cell(None)
    error = None if each.kl.error is None else each.kl.error * KL_MEAN.scale
    return number_cell(each.kl.value * KL_MEAN.scale, error)


def _sample(model: Named) -> tuple[TokenPair, ...]:
    return () if model.model.score is None else model.model.score.sample


def probability_figure(models: Sequence[Named]) -> Figure | None:
    """Return probabilities of the true token, a panel for each model; None without a sample."""
    clouds, rows = [], []
    for model in models:
        sample = [pair for pair in _sample(model) if isfinite(pair.reference) and isfinite(pair.model)]
        if not sample:
            continue
        step = -(-len(sample) // MAX_PAIRS)
        clouds.append(Cloud(model.name, tuple((pair.reference, pair.model) for pair in sample[::step])))
        changes = sorted(100 * (pair.model - pair.reference) for pair in sample)
        quantiles = (number_cell(changes[round(q * (len(changes) - 1))]) for q in _QUANTILES)
        rows.append(Row((Cell(model.name), *quantiles, Cell(f"{len(sample):,}"))))
    if not clouds:
        return None
    columns = (Column("model"), *(Column(f"{100 * q:.0f} %", "points") for q in _QUANTILES), Column("positions"))
    description = (
        "Each dot is a position of the text: the probability that the reference gave the token that follows (to the "
        "right), and the one that the file gave (up). On the diagonal nothing has changed."
    )
    table = Table("Change of the true token's probability, percentiles in percentage points", columns, tuple(rows))
    return figure(
        "probability", "Probability of the true token", description, table, lambda width: draw_clouds(clouds, width)
    )
