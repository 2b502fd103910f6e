"""What `quantize` says when it is done."""

from typing import TYPE_CHECKING

from gemma4_quant.cli.run import files_text, size_text
from gemma4_quant.errors import listed

if TYPE_CHECKING:
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
    if result.without_importance:
        lines.append(f"without importance: {listed(result.without_importance)}")
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
