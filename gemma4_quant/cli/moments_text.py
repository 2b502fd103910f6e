"""What `calibrate` says of second moments."""

from pathlib import Path
from typing import TYPE_CHECKING

from gemma4_quant.cli.run import size_text

if TYPE_CHECKING:
    from gemma4_quant.calibration.collect_moments import MomentsResult
    from gemma4_quant.calibration.moments import Provenance


def moments_text(result: "MomentsResult") -> str:
    """Return the summary of a file of second moments."""
    n_blocks = result.n_entries - result.n_full
    kinds = f"{result.n_full} inputs in full" + (f", {n_blocks} in 256-wide blocks" if n_blocks else "")
    passes = "one pass" if result.n_passes == 1 else f"{result.n_passes} passes"
    return (
        f"wrote {result.path} ({size_text(result.n_bytes)}): second moments for {result.n_weights} weights, {kinds}, "
        f"from {result.n_tokens:,} tokens and {result.n_held_out_tokens:,} held out to check them, in {passes} with "
        f"{size_text(result.memory_bytes)} of memory and {result.seconds:.1f} s"
    )


def merged_text(output: Path, made_from: "Provenance") -> str:
    """Return the summary of merged files."""
    n_held_out = made_from.held_out_chunks * made_from.chunk_size
    return (
        f"wrote {output}: second moments of {made_from.n_summed_tokens:,} tokens and {n_held_out:,} held out, "
        f"from {len(made_from.datasets)} texts"
    )
