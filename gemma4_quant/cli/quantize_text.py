"""What `quantize` says when it is done."""

from typing import TYPE_CHECKING

from gemma4_quant.cli.run import files_text, size_text
from gemma4_quant.errors import listed

if TYPE_CHECKING:
    from gemma4_quant.feedback.summary import FeedbackReport
    from gemma4_quant.quantization import QuantizeResult


def result_text(result: "QuantizeResult") -> str:
    """Return the summary of one file, a line a finding."""
    types = ", ".join(f"{count} {name}" for name, count in result.types.items())
    lines = [
        f"wrote {files_text(result.files)} ({size_text(result.n_bytes)}, "
        f"{result.bits_per_weight:.2f} bits per weight) in {result.seconds:.1f} s",
        f"types: {types}",
    ]
    if result.fallbacks:
        shown = ", ".join(f"{name} {change}" for name, change in list(result.fallbacks.items())[:3])
        more = len(result.fallbacks) - 3
        lines.append(
            f"{len(result.fallbacks)} tensors have rows that do not fit the wanted type: {shown}"
            + (f" and {more} more" if more > 0 else "")
        )
    lines += _special(result)
    if result.feedback is not None:
        lines += _feedback(result.feedback)
    if result.without_importance:
        lines.append(f"without importance: {listed(result.without_importance)}")
    if result.lent_importance:
        lent = (f"{share} experts of {name}" for name, share in result.lent_importance.items())
        lines.append(f"with the mean importance of the other experts, having seen too little: {listed(lent, 3)}")
    return "\n".join(lines)


def _special(result: "QuantizeResult") -> list[str]:
    """Say what was done for Gemma 4 beyond llama-quantize's mixture."""
    lines = []
    if result.floors:
        kinds = ", ".join(sorted(set(result.floors.values())))
        lines.append(
            f"{len(result.floors)} small sensitive tensors got {kinds} instead of fewer bits "
            f"(--no-floors leaves that out): {listed(result.floors, 2)}"
        )
    for key, change in result.padding.items():
        lines.append(f"padded {key} {change} with zeros, so that larger blocks fit (--pad-ffn off leaves that out)")
    grids = result.qat
    if grids.n_tensors:
        exact = f"{grids.exact_share:.2%} of the {grids.n_blocks:,} blocks encoded in this run are bit-exact"
        lines.append(f"{grids.n_tensors} tensors lie on a trained grid and stay on it: {exact}")
    if grids.left:
        lines.append(f"{len(grids.left)} tensors lie on a trained grid and were moved off it; --type q4_0 would not")
    return lines


def _feedback(report: "FeedbackReport") -> list[str]:
    """Say what error feedback gained, the tensors that gained least, and what to be careful about."""
    if not report.tensors:
        return ["error feedback: no tensor encoded in this run has second moments and a type that can use them"]
    worst = sorted(report.tensors, key=lambda tensor: -tensor.ratio)[:3]
    lines = [
        f"error feedback: the layer-output error of {len(report.tensors)} tensors is {report.mean_ratio:.2f} of what "
        f"importance alone gives (least gained: {', '.join(f'{each.name} {each.ratio:.2f}' for each in worst)})"
    ]
    if report.fell_back:
        reasons = sorted({reason for tensor in report.fell_back for reason in tensor.reasons})
        lines.append(
            f"without feedback: {sum(tensor.n_fallbacks for tensor in report.fell_back)} matrices "
            f"({', '.join(reasons)}) of {listed((tensor.name for tensor in report.fell_back), 3)}"
        )
    if report.few:
        lines.append(
            f"fewer than three tokens a column for {sum(tensor.n_few for tensor in report.few)} matrices of "
            f"{listed((tensor.name for tensor in report.few), 3)}: more calibration text will help them"
        )
    return lines
