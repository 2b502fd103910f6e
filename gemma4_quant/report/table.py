"""Bench results as a table of plain text that fits a terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gemma4_quant.benchmark import BenchResult, ModelResult
from gemma4_quant.measuring.metrics import DivergenceSummary, Estimate
from gemma4_quant.measuring.throughput import Speed

_MAX_NAME = 22


@dataclass(frozen=True)
class _Column:
    """A column: two lines of header (name, unit) and how to write a cell; `-` where nothing was measured."""

    title: str
    unit: str
    cell: Callable[[ModelResult], str]


def bench_table(result: BenchResult) -> str:
    """Return bench results as a table: a row for each file, units in the header, conditions below."""
    columns = [column for column in _columns(result) if column is not None]
    rows = [
        [column.title for column in columns],
        [column.unit for column in columns],
        *([column.cell(model) for column in columns] for model in result.models),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(2, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *_notes(result)])


def _columns(result: BenchResult) -> list[_Column | None]:
    scored = result.text is not None
    compared = any(model.score is not None and model.score.divergence is not None for model in result.models)
    prompt = next((model.prompt.test for model in result.models if model.prompt), None)
    generation = next((model.generation.test for model in result.models if model.generation), None)
    return [
        _Column("model", "", lambda model: _short(model.path.name)),
        _Column("size", "MiB", lambda model: f"{model.n_bytes / (1 << 20):.2f}"),
        _Column("bits per", "weight", lambda model: f"{model.bits_per_weight:.2f}"),
        _Column("perplexity", "", _perplexity) if scored else None,
        _Column("KL divergence", "1e-3 nat", _of(lambda d: _estimate(d.mean, 1e3, 3))) if compared else None,
        _Column("same top", "%", _of(lambda d: f"{100 * d.same_top.value:.2f}")) if compared else None,
        _Column(prompt, "tokens/s", lambda model: _speed(model.prompt)) if prompt else None,
        _Column(generation, "tokens/s", lambda model: _speed(model.generation)) if generation else None,
    ]


def _notes(result: BenchResult) -> list[str]:
    notes = []
    scored = next((model.score for model in result.models if model.score), None)
    if scored is not None and result.text is not None:
        notes.append(
            f"text: {result.text.name}, {scored.n_chunks} chunks of {result.n_ctx} tokens, "
            f"{scored.n_positions:,} predictions scored"
        )
    if result.reference is not None:
        notes.append(f"reference: {result.reference.name}; same top: both models' likeliest token agrees")
    threads = f"{result.n_threads} thread{'s' if result.n_threads > 1 else ''}"
    version = result.versions["llama-cpp-python"]
    notes.append(f"device: {result.device}, {threads}, llama-cpp-python {version}; ± is one standard error")
    if any(model.prompt or model.generation for model in result.models):
        notes[-1] += ", of speeds the deviation"
    return notes


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first = row[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()


def _short(name: str) -> str:
    """Cut a long file name in its middle: its end tells the type."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name.removesuffix(".gguf"))
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 15]}…{name[-14:]}"


def _estimate(estimate: Estimate, scale: float, digits: int) -> str:
    return f"{estimate.value * scale:.{digits}f} ±{estimate.error * scale:.{digits}f}"


def _perplexity(model: ModelResult) -> str:
    return "-" if model.score is None else _estimate(model.score.perplexity, 1, 2)


def _of(write: Callable[[DivergenceSummary], str]) -> Callable[[ModelResult], str]:
    def cell(model: ModelResult) -> str:
        if model.is_reference:
            return "reference"
        return "-" if model.score is None or model.score.divergence is None else write(model.score.divergence)

    return cell


def _speed(speed: Speed | None) -> str:
    if speed is None:
        return "-"
    digits = 0 if speed.tokens_per_second >= 100 else 1 if speed.tokens_per_second >= 10 else 2
    return f"{speed.tokens_per_second:.{digits}f} ±{speed.deviation:.{digits}f}"
