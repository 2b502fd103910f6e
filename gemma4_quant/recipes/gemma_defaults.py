"""What this tool does better than llama-quantize's mixture for Gemma 4 unless told not to, as data.

The numbers behind it stand in docs/measurements.md, "Floors".
"""

import re

from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.recipes.recipe import Floor, PadMode, QatMode, Recipe

_PROJ = re.compile(r"^blk\.\d+\.proj\.weight$")
_INP_GATE = re.compile(r"^blk\.\d+\.inp_gate\.weight$")
_KEYS_AND_VALUES = re.compile(r"^blk\.\d+\.attn_[kv]\.weight$")
_PER_LAYER_TABLE = "per_layer_token_embd.weight"
_WHY_PROJ = "adds the per-layer embeddings to every layer's output; next to the tables, most divergence a byte"
_WHY_INP_GATE = "gates what the per-layer embeddings add to every layer's output, and is as small"
_WHY_KEYS = "few heads that all queries and the later layers share, in the models with per-layer embeddings"

GEMMA_FLOORS = (
    Floor(_PROJ, GgmlType.Q8_0, _WHY_PROJ, from_bits=3.0),
    Floor(_INP_GATE, GgmlType.Q6_K, _WHY_INP_GATE, from_bits=3.0),
    Floor(_KEYS_AND_VALUES, GgmlType.Q6_K, _WHY_KEYS, from_bits=4.0, beside=_PER_LAYER_TABLE),
    Floor(_PROJ, GgmlType.Q6_K, _WHY_PROJ),
    Floor(_INP_GATE, GgmlType.Q4_K, _WHY_INP_GATE),
)
"""Least types of the matrices that cost most divergence for their bytes.

The bounds in bits keep what they add below 1 % of any file of E2B and E4B; in a file of fewer bits the other tensors
lose far more. Keys and values of the larger models have more heads, and would take more than that.
"""


def gemma_recipe(file_type: FileType) -> Recipe:
    """Return the recipe that `quantize` follows without another: the file type's mixture, made safe for Gemma 4."""
    return Recipe(file_type, floors=GEMMA_FLOORS, qat=QatMode.AUTO, pad_ffn=PadMode.AUTO)
