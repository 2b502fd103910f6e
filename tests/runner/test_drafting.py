"""Converted drafters propose, beside their target in llama.cpp, what transformers' drafters do."""

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_checkpoint
from logits_cases import DRAFTED, draft_case

from gemma4_quant.conversion import convert
from gemma4_quant.ggml import GgmlType
from gemma4_quant.runner.llama_library import libraries
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel

GOLDEN = Path(__file__).parents[1] / "golden"
DECODE = 1  # enum llama_process_type (llama.h)
N_CTX = 64


def drafter_context(llama: Any, drafter: LoadedModel, target: Session) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = N_CTX
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = GgmlType.F32
    params.flash_attn_type = 0
    params.ctx_other = target._handle
    return llama.llama_init_from_model(drafter.handle, params)


def propose(llama: Any, context: Any, token: int, state: np.ndarray, position: int, n_vocab: int) -> np.ndarray:
    """Evaluate one token together with the target's hidden state; returns the logits of the next."""
    batch = llama.llama_batch_ext_init(context)
    index = llama.llama_batch_ext_add_token(batch, 0, token)
    pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    embedding = llama.llama_embd(data=pointer, n_rows=1, n_embd=len(state))
    assert llama.llama_batch_ext_set_embd_token(batch, index, embedding)
    llama.llama_batch_ext_set_pos(batch, index, (ctypes.c_int32 * 1)(position))
    llama.llama_batch_ext_set_output_logits(batch, index, True)
    assert llama.llama_process(context, DECODE, batch) == 0
    llama.llama_synchronize(context)
    logits = np.ctypeslib.as_array(llama.llama_get_logits(context), shape=(n_vocab,)).copy()
    llama.llama_batch_ext_free(batch)
    return logits


@pytest.mark.parametrize("kind", DRAFTED)
def test_drafts_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    case, llama = draft_case(), libraries().llama
    paths = [
        convert(write_checkpoint(tmp_path / each, each), tmp_path / f"{each}.gguf", "f32").path
        for each in (DRAFTED[kind], kind)
    ]
    options = SessionOptions(
        n_ctx=N_CTX,
        n_ubatch=N_CTX,
        n_batch=N_CTX,
        n_threads=1,
        key_type=GgmlType.F32,
        value_type=GgmlType.F32,
        flash_attention=False,
    )
    with LoadedModel(paths[0]) as target, LoadedModel(paths[1]) as drafter, Session(target, options) as session:
        context = drafter_context(llama, drafter, session)
        assert context, f"llama.cpp makes no context of {os.fsdecode(paths[1])}"
        session.decode(case.tokens[None], 0, slice(0, 0))
        found = propose(llama, context, case.next_token, case.state, len(case.tokens), drafter.n_vocab)
        llama.llama_free(context)
    with np.load(GOLDEN / "drafters.npz") as recorded:
        expected = recorded[kind]
    assert np.abs(expected).max() > 2
    assert np.abs(found - expected).max() < 0.02
