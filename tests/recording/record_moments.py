"""Record second moments of transformers' activations: `python tests/recording/record_moments.py` with torch.

Writes tests/golden/moments.npz: for every linear layer of the example, in float32 with eager attention, the mean of
x xᵀ over its inputs, multiplied with a few random directions (tests/moments_cases.py). Chunks as llama.cpp's tools
cut them, those that calibration holds out left out.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import Gemma4ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoints import EXAMPLE
from moments_cases import N_CHUNKS, N_CTX, probes

MODULES = {
    "self_attn.q_proj": ("attn_q", "attn_k", "attn_v"),
    "self_attn.o_proj": ("attn_output",),
    "mlp.gate_proj": ("ffn_gate", "ffn_up"),
    "mlp.down_proj": ("ffn_down",),
    "per_layer_input_gate": ("inp_gate",),
    "per_layer_projection": ("proj",),
}


def chunks() -> torch.Tensor:
    """Return (N_CHUNKS, N_CTX) tokens of the calibration text, the first of each BOS."""
    tokenizer = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))
    text = (EXAMPLE / "calibration.txt").read_text(encoding="utf-8").removesuffix("\n")
    ids = [2, *tokenizer.encode(text, add_special_tokens=False).ids][: N_CHUNKS * N_CTX]
    tokens = torch.tensor(ids).view(N_CHUNKS, N_CTX)
    tokens[:, 0] = 2
    return tokens


def main() -> None:
    """Write the golden file."""
    model = Gemma4ForCausalLM.from_pretrained(EXAMPLE, dtype=torch.float32, attn_implementation="eager").eval()
    sums: dict[str, torch.Tensor] = {}

    def watch(module: torch.nn.Module, name: str) -> None:
        def add(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + x.T @ x

        module.register_forward_pre_hook(add)

    for index, layer in enumerate(model.model.layers):
        for path, names in MODULES.items():
            watch(layer.get_submodule(path), f"blk.{index}.{names[0]}.weight")
    watch(model.model.per_layer_model_projection, "per_layer_model_proj.weight")
    watch(model.lm_head, "token_embd.weight")
    summed = [i for i in range(N_CHUNKS) if i % 8 != 7]
    tokens = chunks()
    with torch.no_grad():
        for i in summed:
            model(input_ids=tokens[i : i + 1], use_cache=False)
    count = len(summed) * N_CTX
    found = {name: (value.numpy() / count @ probes(len(value))).astype(np.float32) for name, value in sums.items()}
    np.savez_compressed(Path(__file__).parents[1] / "golden" / "moments.npz", **found)


main()
