"""KL divergence of our quantized files against llama-quantize's, on the example: `python benchmarks/fidelity.py`.

Both quantize the same BF16 file to the same types with the same importance, llama-imatrix's of the example's
calibration text; both are measured on its evaluation text against its F32 file. Prints a Markdown table.
"""

import argparse
import tempfile
from pathlib import Path

from divergence import divergences
from ggml_quantizer import llama_quantize

import gemma4_quant as gq
from gemma4_quant.cores import n_cores
from gemma4_quant.recipes.recipe import Recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-gemma4-e"
IMPORTANCE = Path(__file__).parents[1] / "tests" / "golden" / "imatrix.gguf"
FILE_TYPES = (
    *("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_1", "q4_k_m", "q4_k_s", "q4_0", "iq4_nl", "iq4_xs"),
    *("q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "q2_k_s"),
)


def main() -> None:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", default=FILE_TYPES, help="file types [default: all]")
    parser.add_argument("--chunks", type=int, help="measure on so many chunks only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        reference = gq.convert(EXAMPLE, work / "f32.gguf", "f32").path
        source = gq.convert(EXAMPLE, work / "bf16.gguf", "bf16").path
        results = []
        for name in arguments.types:
            file_type = gq.FileType[name.upper()]
            llama_quantize(source, work / f"llama-{name}.gguf", file_type, IMPORTANCE, n_cores())
            ours = work / f"ours-{name}.gguf"
            results.append(gq.quantize(source, ours, recipe=Recipe(file_type), importance=IMPORTANCE))
        files = [work / f"{side}-{name}.gguf" for name in arguments.types for side in ("ours", "llama")]
        found = divergences(files, reference, EXAMPLE / "evaluation.txt", n_chunks=arguments.chunks)
    print("| file type | bytes | llama-quantize | ours | ratio |\n|---|---|---|---|---|")
    for i, (name, result) in enumerate(zip(arguments.types, results, strict=True)):
        mine, other = found[2 * i].kl.mean.value, found[2 * i + 1].kl.mean.value
        print(f"| {name} | {result.n_bytes:,} | {other:.6f} | {mine:.6f} | {mine / other:.3f} |")


if __name__ == "__main__":
    main()
