"""A file of every type that `quantize` makes: llama.cpp's own check of its rows, a run of it, and `verify`."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint

from gemma4_quant.calibration.importance import Entry, Importance, write_importance
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import FileType
from gemma4_quant.quantization import QuantizeOptions, quantize_each
from gemma4_quant.recipes.gemma_defaults import gemma_recipe
from gemma4_quant.recipes.recipe import parse_tensor_type
from gemma4_quant.runner.llama_library import forget_errors, last_errors, libraries
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.source import open_model
from gemma4_quant.verification import verify

MADE = [each for each in FileType if each is not FileType.NVFP4]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("dense") / "dense", "dense")


@pytest.fixture(scope="module")
def files(checkpoint, tmp_path_factory) -> dict[FileType, Path]:
    """Quantize the random checkpoint to all types in one run, with random importance of every matrix.

    Two of six layers are enough for each type, and the others Q8_0: ggml's encoders of codebook types take long.
    """
    work = tmp_path_factory.mktemp("types")
    random = np.random.default_rng(0)
    entries = {
        tensor.name: Entry(
            random.gamma(1.0, 1.0, (1, tensor.n_cols)).astype(np.float32) + 0.01, np.ones(1, np.float32)
        )
        for tensor in open_model(checkpoint).tensors
        if tensor.n_rows > 1
    }
    write_importance(work / "imatrix.gguf", Importance(entries, ["random"], 1, 512))
    few = parse_tensor_type(r"blk\.[2-5]\.=q8_0")
    recipe = replace(gemma_recipe(FileType.Q4_K_M), tensor_types=(few,))
    options = QuantizeOptions(importance=work / "imatrix.gguf", recipe=recipe)
    results = quantize_each(checkpoint, work / "{ftype}.gguf", MADE, options)
    return {file_type: result.path for file_type, result in zip(MADE, results, strict=True)}


def load_with_checks(path: Path) -> str | None:
    """Have llama.cpp load a file and validate every row (--check-tensors); returns why it does not."""
    llama = libraries().llama
    params = llama.llama_model_default_params()
    params.check_tensors = True
    forget_errors()
    model = llama.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        return last_errors()
    llama.llama_model_free(model)
    return None


@pytest.mark.parametrize("file_type", MADE, ids=lambda each: each.name)
def test_its_rows_are_valid_to_llama_cpp_and_it_runs(files, file_type):
    assert load_with_checks(files[file_type]) is None
    with LoadedModel(files[file_type]) as model, Session(model, SessionOptions(n_ctx=8, n_threads=1)) as session:
        logits = session.decode(np.array([[2, 9, 30, 77]], np.int32), 0, slice(3, None))
        assert np.isfinite(logits).all()
        assert logits.std() > 0


@pytest.mark.parametrize("file_type", MADE, ids=lambda each: each.name)
def test_it_survives_verify(files, checkpoint, file_type):
    result = verify(files[file_type], checkpoint, n_threads=2)
    assert result.is_ok, result.faults


def test_llama_cpp_s_check_finds_what_is_no_number(files, tmp_path):
    """Without this, the check above could be one that finds nothing."""
    tensor = next(each for each in read_gguf(files[FileType.Q8_0]).tensors if each.name == "blk.0.ffn_up.weight")
    data = bytearray(files[FileType.Q8_0].read_bytes())
    at = data.find(np.ascontiguousarray(tensor.source.read_rows(0, 1)).tobytes()[:34])
    data[at : at + 2] = b"\x00\x7e"  # NaN in float16
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data)
    assert "invalid data" in (load_with_checks(damaged) or "")
