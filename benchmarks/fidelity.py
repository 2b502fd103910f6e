"""KL divergence of our quantized files against llama-quantize's, on the example: `python benchmarks/fidelity.py`.

Both quantize the same BF16 file to the same types with the same importance file; both are measured on the example's
evaluation text against its F32 file. Prints a Markdown table.
"""

import argparse
import tempfile
from pathlib import Path

from ggml_quantizer import llama_quantize

import gemma4_quant as gq
from gemma4_quant.cores import n_cores
from gemma4_quant.recipes.recipe import Recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-gemma4-e"
FILE_TYPES = ("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0")


def main() -> None:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", default=FILE_TYPES, help="file types [default: all]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        reference = gq.convert(EXAMPLE, work / "f32.gguf", "f32").path
        source = gq.convert(EXAMPLE, work / "bf16.gguf", "bf16").path
        importance = work / "imatrix.gguf"
        gq.calibrate(source, [EXAMPLE / "calibration.txt"], output=importance)
        print("| file type | bytes | llama-quantize | ours | ratio |\n|---|---|---|---|---|")
        for name in arguments.types:
            file_type = gq.FileType[name.upper()]
            theirs, ours = work / f"llama-{name}.gguf", work / f"ours-{name}.gguf"
            llama_quantize(source, theirs, file_type, importance, n_cores())
            result = gq.quantize(source, ours, recipe=Recipe(file_type), importance=importance)
            our_kl, their_kl = divergences([ours, theirs], reference)
            print(
                f"| {name} | {result.n_bytes:,} | {their_kl:.6f} | {our_kl:.6f} | {our_kl / their_kl:.3f} |",
                flush=True,
            )


def divergences(models: list[Path], reference: Path) -> list[float]:
    """Return the mean KL divergence of each model from `reference` on the evaluation text."""
    text = EXAMPLE / "evaluation.txt"
    result = gq.bench(models, reference=reference, text=text, n_prompt=0, n_generate=0)
    return [measured.score.divergence.mean.value for measured in result.models]


if __name__ == "__main__":
    main()
