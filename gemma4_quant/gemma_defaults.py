"""What this tool does better than llama-quantize's mixture for Gemma 4 unless told not to, as data.

The numbers behind it stand in docs/measurements.md, "Floors".
"""

import re

from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.recipe import Floor, PadMode, QatMode, Recipe

GEMMA_FLOORS = (
    Floor(
        re.compile(r"^blk\.\d+\.proj\.weight$"),
        GgmlType.Q8_0,
        "adds per-layer embeddings to every layer's output: most divergence a byte of all matrices",
    ),
    Floor(
        re.compile(r"^blk\.\d+\.inp_gate\.weight$"),
        GgmlType.Q6_K,
        "gates what the per-layer embeddings add, and is as small",
    ),
)
"""Least types of the matrices of the per-layer path; together less than 1 % of a file of E2B or E4B."""


def gemma_recipe(file_type: FileType) -> Recipe:
    """Return the recipe that `quantize` follows without another: the file type's mixture, made safe for Gemma 4."""
    return Recipe(file_type, floors=GEMMA_FLOORS, qat=QatMode.AUTO, pad_ffn=PadMode.AUTO)
