"""What this tool does better than llama-quantize's mixture for Gemma 4 unless told not to, as data.

The numbers behind it stand in docs/measurements.md, "Floors".
"""

import re

from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.recipe import Floor, PadMode, QatMode, Recipe

_PROJ = re.compile(r"^blk\.\d+\.proj\.weight$")
_INP_GATE = re.compile(r"^blk\.\d+\.inp_gate\.weight$")
_WHY_PROJ = "adds the per-layer embeddings to every layer's output; next to the tables, most divergence a byte"
_WHY_INP_GATE = "gates what the per-layer embeddings add to every layer's output, and is as small"

_LOW_BITS = 3.0
"""In a file of fewer bits the other tensors lose far more, and the higher floors would be over 1 % of it."""

GEMMA_FLOORS = (
    Floor(_PROJ, GgmlType.Q8_0, _WHY_PROJ, from_bits=_LOW_BITS),
    Floor(_INP_GATE, GgmlType.Q6_K, _WHY_INP_GATE, from_bits=_LOW_BITS),
    Floor(_PROJ, GgmlType.Q6_K, _WHY_PROJ),
    Floor(_INP_GATE, GgmlType.Q4_K, _WHY_INP_GATE),
)
"""Least types of the matrices of the per-layer path, less than 1 % of a file of E2B or E4B."""


def gemma_recipe(file_type: FileType) -> Recipe:
    """Return the recipe that `quantize` follows without another: the file type's mixture, made safe for Gemma 4."""
    return Recipe(file_type, floors=GEMMA_FLOORS, qat=QatMode.AUTO, pad_ffn=PadMode.AUTO)
