"""Record what transformers' drafters propose: `python tests/recording/record_drafters.py` with torch.

Writes tests/golden/drafters.npz: float32 logits of one drafted token, from a target's keys and values (random
checkpoints, logits_cases.draft_case), without centroids, which only leave logits out. transformers 5.23 raises when
all layers share keys and values, and keeps a target's only if its layers share some, so `kv_sharing_modes` of the
configs is replaced. GELU as in record_logits.py.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Gemma4AssistantForCausalLM, Gemma4TextConfig
from transformers.activations import GELUTanh
from transformers.models.gemma4_unified.configuration_gemma4_unified import Gemma4UnifiedTextConfig
from transformers.models.gemma4_unified_assistant import modeling_gemma4_unified_assistant as unified

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoints import write_checkpoint
from logits_cases import DRAFTED, draft_case

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = {"assistant": Gemma4TextConfig, "unified_assistant": Gemma4UnifiedTextConfig}
CLASSES = {
    "assistant": Gemma4AssistantForCausalLM,
    "unified_assistant": unified.Gemma4UnifiedAssistantForCausalLM,
}


def gelu_of_ggml(_self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Compute GELU as ggml_vec_gelu_f32 does (ggml-cpu/vec.h)."""
    rounded = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, rounded))


def stored(config: Any) -> list[str | None]:
    """Keep the keys and values of the last layer of each kind that has its own."""
    first_shared = config.num_hidden_layers - config.num_kv_shared_layers
    own = config.layer_types[:first_shared]
    last = {kind: first_shared - 1 - own[::-1].index(kind) for kind in set(own)}
    return [
        "reuse" if layer >= first_shared else "store" if layer in last.values() else None
        for layer in range(config.num_hidden_layers)
    ]


def draft(target: Path, drafter: Path, kind: str) -> np.ndarray:
    """Return the logits of the drafted token."""
    case, config = draft_case(), CONFIGS[kind]
    config.kv_sharing_modes = property(stored)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, attn_implementation="eager")
    decoder = getattr(model.model, "language_model", model.model)
    config.kv_sharing_modes = property(lambda self: ["reuse"] * self.num_hidden_layers)
    own = CLASSES[kind].from_pretrained(drafter, dtype=torch.float32, attn_implementation="eager")
    own.config.use_ordered_embeddings = False
    with torch.no_grad():
        states = decoder(
            input_ids=torch.from_numpy(case.tokens.astype(np.int64))[None],
            return_shared_kv_states=True,
            use_cache=False,
        ).shared_kv_states
        embedded = decoder.embed_tokens(torch.tensor([[case.next_token]]))
        out = own(
            inputs_embeds=torch.cat([embedded, torch.from_numpy(case.state)[None, None]], -1),
            position_ids=torch.tensor([[len(case.tokens)]]),
            shared_kv_states={kind: states[kind] for kind in ("full_attention", "sliding_attention")},
        )
    return out.logits[0, 0].numpy()


def main() -> None:
    """Write the golden file."""
    GELUTanh.forward = gelu_of_ggml
    found = {}
    for kind, target in DRAFTED.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = [write_checkpoint(Path(folder) / each, each) for each in (target, kind)]
            found[kind] = draft(paths[0], paths[1], kind)
    np.savez_compressed(GOLDEN / "drafters.npz", **found)


main()
