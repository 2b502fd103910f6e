"""Record transformers' logits of random checkpoints: `python tests/recording/record_logits.py` with torch and peft.

Writes tests/golden/logits-KIND.npz and logits-KIND-adapter.npz: float32 logits at chosen positions of random tokens,
eager attention. ggml looks GELU up in a table of half floats; here it is computed with the same rounding, so that
what remains is the noise of float32. `plain` is the largest difference that this rounding makes.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma4ForConditionalGeneration
from transformers.activations import GELUTanh

sys.path.insert(0, str(Path(__file__).parents[1]))
from adapters import write_adapter_for
from checkpoints import KINDS, write_checkpoint
from logits_cases import ADAPTED, POSITIONS, random_tokens

GOLDEN = Path(__file__).parents[1] / "golden"
EXACT = GELUTanh.forward


def gelu_of_ggml(_self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Compute GELU as ggml_vec_gelu_f32 does (ggml-cpu/vec.h)."""
    rounded = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, rounded))


def logits(model: torch.nn.Module) -> np.ndarray:
    """Return (len(POSITIONS), n_vocab) logits."""
    tokens = torch.from_numpy(random_tokens().astype(np.int64))[None]
    with torch.no_grad():
        return model(input_ids=tokens).logits[0, list(POSITIONS)].numpy()


def record(model: torch.nn.Module, name: str) -> None:
    """Write the golden file of a model."""
    GELUTanh.forward = EXACT
    plain = logits(model)
    GELUTanh.forward = gelu_of_ggml
    found = logits(model)
    np.savez_compressed(GOLDEN / f"logits-{name}.npz", logits=found, plain=np.abs(found - plain).max())


def main() -> None:
    """Write all golden files."""
    for kind in KINDS:
        cls = Gemma4ForConditionalGeneration if kind == "moe" else AutoModelForCausalLM
        with tempfile.TemporaryDirectory() as folder:
            path = write_checkpoint(Path(folder) / "base", kind)
            model = cls.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
            record(model, kind)
            if kind in ADAPTED:
                adapter = write_adapter_for(kind, Path(folder) / "adapter")
                record(PeftModel.from_pretrained(model, adapter), f"{kind}-adapter")


main()
