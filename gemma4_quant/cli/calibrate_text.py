"""What `calibrate` prints: a summary, coverage of experts, statistics of importance files."""

from collections.abc import Sequence

from gemma4_quant.calibration.collect import CalibrationResult
from gemma4_quant.calibration.coverage import ExpertCoverage
from gemma4_quant.calibration.files import MergeResult
from gemma4_quant.calibration.statistics import Statistics, TensorStatistics, kind_of
from gemma4_quant.errors import listed


def calibration_text(result: CalibrationResult) -> str:
    """Write what a calibration did."""
    resumed = f", {result.n_resumed_chunks} of them by an interrupted run before" if result.n_resumed_chunks else ""
    framed = " and ".join("as turns" if framing == "turn" else framing for framing in result.framings)
    lines = [
        f"wrote {result.path}: {result.n_tensors} tensors from {result.n_tokens:,} tokens "
        f"({result.n_chunks} chunks{resumed}) in {result.seconds:.1f} s on {result.device}",
        f"text: {listed(result.datasets)}, framed {framed}",
    ]
    if result.self_text is not None:
        lines.append(f"the model's own text is in {result.self_text}")
    if result.n_extra_chunks:
        lines.append(f"{result.n_extra_chunks} chunks were added so that each expert sees enough")
    return "\n".join([*lines, *coverage_lines(result.experts, result.min_expert_tokens)])


def merge_text(result: MergeResult) -> str:
    """Write what a merge did."""
    first = (
        f"wrote {result.path}: {result.n_tensors} tensors from {len(result.files)} files "
        f"({result.n_chunks} chunks of {result.n_ctx} tokens)"
    )
    return "\n".join([first, *coverage_lines(result.experts, result.min_expert_tokens)])


def coverage_lines(layers: Sequence[ExpertCoverage], enough: int) -> list[str]:
    """Write how many tokens reached the experts of each layer, and which experts too few; nothing without experts."""
    if not layers:
        return []
    lines = [
        "",
        f"tokens that reached experts ({enough} are enough):",
        "layer  experts  unseen  below  least  median     most",
    ]
    lines += [
        f"{layer.layer:5d}  {layer.n_experts:7d}  {len(layer.unseen):6d}  {len(layer.scarce):5d}  {layer.least:5d}  "
        f"{layer.median:6.0f}  {layer.most:7d}"
        for layer in layers
    ]
    lines += [
        f"layer {layer.layer}: no token reached experts {listed(map(str, layer.unseen), 12)}; "
        "they count as average ones"
        for layer in layers
        if layer.unseen
    ]
    if any(layer.scarce for layer in layers):
        lines.append(f"more text helps, such as --min-expert-tokens {enough}")
    return lines


def statistics_text(statistics: Statistics) -> str:
    """Write statistics as tables, the columns those of `llama-imatrix --show-statistics`."""
    header = (
        "layer", "tensor", "sum", "min", "max", "mean", "sd", "active %", "columns", "entropy", "of most %",
        "outliers %", "cosine",
    )  # fmt: skip
    rows = [header, *map(_row, statistics.tensors)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines += ["", "layer         sum  outliers %  cosine"]
    lines += [
        f"{layer.layer:5d}  {layer.total:10.2f}  {100 * layer.outlier_share:10.2f}  {layer.cosine:6.4f}"
        for layer in statistics.layers
    ]
    return "\n".join(lines)


def _row(each: TensorStatistics) -> tuple[str, ...]:
    return (
        "-" if each.layer is None else str(each.layer),
        kind_of(each.name),
        f"{each.total:.2f}",
        f"{each.least:.4f}",
        f"{each.most:.4f}",
        f"{each.mean:.2f}",
        f"{each.deviation:.2f}",
        f"{100 * each.active_share:.2f}",
        str(each.n_columns),
        f"{each.entropy:.4f}",
        f"{100 * each.entropy_share:.2f}",
        f"{100 * each.outlier_share:.2f}",
        "-" if each.cosine is None else f"{each.cosine:.4f}",
    )
