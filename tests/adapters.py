"""Small LoRA adapters as PEFT saves them, written without torch and the same on every machine."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoints import StoredData, random_weights, tensor_shapes, text_config, write_safetensors

PREFIX = "base_model.model."

CARD = """---
base_model: google/gemma-4-E2B-it
library_name: peft
license: apache-2.0
pipeline_tag: text-generation
tags:
- base_model:adapter:google/gemma-4-E2B-it
- lora
- transformers
---
# A random adapter
"""

LINEAR = re.compile(r"(?:_proj|_gate|_projection)\.weight$")
"""Names of weights that PEFT would target in a text decoder with `target_modules="all-linear"`."""


def write_adapter(
    directory: Path,
    shapes: Iterable[tuple[str, tuple[int, ...]]],
    *,
    rank: int = 4,
    ranks: Mapping[str, int] | None = None,
    seed: int = 1,
    dtype: str = "F32",
    whole: Mapping[str, StoredData] | None = None,
    **settings: Any,
) -> Path:
    """Write an adapter for weights of the given names and shapes into `directory` and return it.

    ranks: of single weights, by name. whole: further tensors, by name without prefix. settings: keys of
    adapter_config.json beside or instead of the usual ones.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = dict(whole or {})
    shapes = list(shapes)
    for name, shape in shapes:
        own = (ranks or {}).get(name, rank)
        for factor, factor_shape in factor_shapes(name, shape, own):
            tensors[factor] = (dtype, factor_shape, random_weights(factor, factor_shape, seed, dtype))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.removesuffix(".weight") for name, shape in shapes if len(shape) == 2],
        "target_parameters": [name for name, shape in shapes if len(shape) == 3],
        **settings,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    write_safetensors(
        directory / "adapter_model.safetensors", {f"{PREFIX}{name}": data for name, data in tensors.items()}
    )
    return directory


def factor_shapes(name: str, shape: tuple[int, ...], rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of the two factors of a weight, as PEFT lays them out for its kind of module."""
    module = name.removesuffix(".weight")
    if "embed_tokens" in name:
        yield f"{module}.lora_embedding_A", (rank, shape[0])
        yield f"{module}.lora_embedding_B", (shape[1], rank)
    elif len(shape) == 3:  # experts: gate_up_proj is wrapped first, down_proj around it
        module = module.rpartition(".")[0] + (".base_layer" if name.endswith("gate_up_proj") else "")
        yield f"{module}.lora_A.weight", (shape[0] * rank, shape[2])
        yield f"{module}.lora_B.weight", (shape[1], rank * shape[0])
    else:
        yield f"{module}.lora_A.weight", (rank, shape[1])
        yield f"{module}.lora_B.weight", (shape[0], rank)


def linear_shapes(kind: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of every linear layer of a text decoder of `kind` (see checkpoints.KINDS)."""
    shapes = tensor_shapes(kind, text_config(kind))
    return [(name, shape) for name, shape in shapes if "vision" not in name and LINEAR.search(name)]


def write_adapter_for(kind: str, directory: Path) -> Path:
    """Write the adapter whose logits are recorded (golden/logits-KIND-adapter.npz); ranks and scales differ."""
    shapes = linear_shapes(kind)
    settings: dict[str, Any] = {
        "rank_pattern": {"layers.1.self_attn.q_proj": 8, r".*\.layers\.2\.mlp\.up_proj": 2},
        "alpha_pattern": {"o_proj": 1, "layers.2.mlp.up_proj": 3},
        "use_rslora": True,
        "lora_alpha": 2,
    }
    prefix = "model.language_model." if kind == "moe" else "model."
    ranks = {f"{prefix}layers.1.self_attn.q_proj.weight": 8, f"{prefix}layers.2.mlp.up_proj.weight": 2}
    if kind == "moe":
        stacks = [entry for entry in tensor_shapes(kind, text_config(kind)) if ".experts." in entry[0]]
        shapes = [*shapes, *stacks]
    return write_adapter(directory, shapes, ranks=ranks, **settings)
