"""Where the divergence comes from: one group of matrices quantized, all else in F32.

`python benchmarks/sensitivity.py` prints a Markdown table of the mean KL divergence from F32 on the example's
evaluation text, with the importance of tests/golden, and what going from Q4_0 to Q8_0 saves for each byte it costs.
The floors of gemma_defaults.py rest on it.
"""

import argparse
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from divergence import divergences

import gemma4_quant as gq
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import FileType, GgmlType, row_bytes
from gemma4_quant.model import Tensor
from gemma4_quant.recipes.recipe import Recipe

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "tiny-gemma4-e"
IMPORTANCE = ROOT / "tests" / "golden" / "imatrix.gguf"
TYPES = (GgmlType.Q4_0, GgmlType.Q5_0, GgmlType.Q6_K, GgmlType.Q8_0)
_LAYER_GROUPS = ("attn_k", "attn_v", "attn_q", "attn_output", "ffn_down", "ffn_gate", "ffn_up")
GROUPS = {
    "token_embd": r"^token_embd",
    "per_layer_token_embd": r"^per_layer_token_embd",
    "proj": r"\.proj\.",
    "inp_gate": r"inp_gate",
    "per_layer_model_proj": r"per_layer_model_proj",
    **{name: name + r"\." for name in _LAYER_GROUPS},
}


@dataclass(frozen=True)
class Cell:
    """One type of one group: its bytes and the divergence it causes."""

    type: GgmlType
    n_bytes: int
    divergence: float


def main() -> None:
    """Quantize each group to each type, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=8, help="chunks of the text to use")
    arguments = parser.parse_args()
    print("| group | weights | " + " | ".join(kind.name for kind in TYPES) + " | saved a byte, Q4_0 → Q8_0 |")
    print("|---|---|" + "---|" * len(TYPES) + "---|")
    with tempfile.TemporaryDirectory() as directory:
        reference = gq.convert(EXAMPLE, Path(directory) / "f32.gguf", "f32").path
        for name, pattern in GROUPS.items():
            tensors = [t for t in read_gguf(reference).tensors if re.search(pattern, t.name) and len(t.shape) > 1]
            cells = measured(reference, tensors, arguments.chunks)
            print(f"| {name} | {sum(t.n_weights for t in tensors):,} | {row_text(cells)} |", flush=True)


def fits(tensors: list[Tensor], kind: GgmlType) -> bool:
    """Tell whether every row is whole blocks."""
    return kind is not GgmlType.Q6_K or all(tensor.n_cols % 256 == 0 for tensor in tensors)


def measured(reference: Path, tensors: list[Tensor], n_chunks: int) -> list[Cell]:
    """Quantize `tensors` of the reference alone, to each type that fits, and measure."""
    kinds = [kind for kind in TYPES if fits(tensors, kind)]
    files = []
    for kind in kinds:
        recipe = Recipe(FileType.F32, named_types={tensor.name: kind for tensor in tensors})
        output = reference.with_name(f"{kind.name}.gguf")
        files.append(gq.quantize(reference, output, recipe=recipe, importance=IMPORTANCE).path)
    text = EXAMPLE / "evaluation.txt"
    found = divergences(files, reference, text, n_chunks=n_chunks)
    sizes = [sum(tensor.n_rows * row_bytes(kind, tensor.n_cols) for tensor in tensors) for kind in kinds]
    scores = [each.kl.mean.value for each in found]
    return [Cell(*parts) for parts in zip(kinds, sizes, scores, strict=True)]


def row_text(cells: list[Cell]) -> str:
    """Return the divergence of each type and what a byte buys."""
    found = {cell.type: cell for cell in cells}
    shown = [f"{found[kind].divergence:.6f}" if kind in found else "" for kind in TYPES]
    low, high = found[GgmlType.Q4_0], found[GgmlType.Q8_0]
    saved = (low.divergence - high.divergence) / (high.n_bytes - low.n_bytes)
    return " | ".join([*shown, f"{saved * 1e9:.2f}e-9"])


if __name__ == "__main__":
    main()
