"""What a trained 4-bit grid loses in a GGUF file, on the example snapped to each grid: `python benchmarks/qat.py`.

KL divergence from the snapped model in F32 on the example's evaluation text, and how often the likeliest token is the
same. "weights" is our Q4_0 file with its weights decoded to F32: what is left when llama.cpp's 8-bit activations,
which it computes with for every quantized type, are taken out. Prints a Markdown table.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from divergence import divergences

import gemma4_quant as gq
from gemma4_quant.recipes.recipe import Recipe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from qat_weights import FOUR_BIT_GRIDS, four_bit, write_snapped_example  # noqa: E402

TEXT = ROOT / "examples" / "tiny-gemma4-e" / "evaluation.txt"


def main() -> None:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=None, help="chunks of the text to use [default: all]")
    arguments = parser.parse_args()
    print("| grid, scales in | bit-exact blocks | BF16 | weights | ours, Q4_0 | ordinary Q4_0 | Q8_0 |")
    print("|---|---|---|---|---|---|---|")
    for grid in FOUR_BIT_GRIDS:
        for scales_in in ("bf16", "f32"):
            with tempfile.TemporaryDirectory() as directory:
                measure(Path(directory), grid, scales_in, arguments.chunks)


def measure(work: Path, grid: str, scales_in: str, n_chunks: int | None) -> None:
    """Print the row of one grid."""
    checkpoint = write_snapped_example(work / "qat", lambda _, rows: four_bit(rows, grid, scales_in=scales_in))
    reference = gq.convert(checkpoint, work / "f32.gguf", "f32").path
    ours = gq.quantize(checkpoint, work / "ours.gguf", gq.FileType.Q4_0)
    float32 = Recipe(gq.FileType.F32)
    files = [
        gq.convert(checkpoint, work / "bf16.gguf", "bf16").path,
        gq.quantize(ours.path, work / "weights.gguf", recipe=float32, allow_requantize=True).path,
        ours.path,
        gq.quantize(checkpoint, work / "plain.gguf", recipe=Recipe(gq.FileType.Q4_0)).path,
        gq.quantize(checkpoint, work / "q8_0.gguf", recipe=Recipe(gq.FileType.Q8_0)).path,
    ]
    scores = divergences(files, reference, TEXT, n_chunks=n_chunks)
    cells = " | ".join(f"{each.kl.mean.value:.6f}, {each.same_top.value:.2%}" for each in scores)
    print(f"| {grid}, {scales_in} | {ours.qat.exact_share:.1%} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
