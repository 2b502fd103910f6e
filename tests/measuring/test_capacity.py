"""Memory estimated from a file's metadata, against what llama.cpp allocates."""

import logging
import re
from types import SimpleNamespace

import pytest

from gemma4_quant.errors import GgufError, RunError
from gemma4_quant.ggml import GgmlType
from gemma4_quant.measuring import capacity
from gemma4_quant.measuring.capacity import cache_bytes, free_bytes, refuse_too_big, run_bytes
from gemma4_quant.metadata import uint32
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.source import open_gguf


@pytest.mark.parametrize("kind", ["e", "moe"])
@pytest.mark.parametrize(("n_ctx", "n_sequences"), [(200, 1), (512, 3), (3000, 1)])
@pytest.mark.parametrize(("key_type", "value_type"), [(GgmlType.F16, GgmlType.F16), (GgmlType.Q8_0, GgmlType.Q4_0)])
def test_the_cache_has_the_bytes_that_llama_cpp_says(
    kind, n_ctx, n_sequences, key_type, value_type, example_bf16, moe_bf16, caplog
):
    path = {"e": example_bf16, "moe": moe_bf16}[kind]
    options = SessionOptions(
        n_ctx=n_ctx,
        n_sequences=n_sequences,
        n_batch=512,
        key_type=key_type,
        value_type=value_type,
        flash_attention=True,
    )
    with LoadedModel(path) as model, caplog.at_level(logging.DEBUG, logger="gemma4_quant"):
        Session(model, options).close()
    said = re.findall(r"llama_kv_cache: size = +([\d.]+) MiB", caplog.text)
    assert len(said) == 2  # layers with a window, and those without
    estimated = cache_bytes(model.file.metadata, n_ctx, n_sequences, key_type, value_type)
    assert estimated / (1 << 20) == pytest.approx(sum(map(float, said)), abs=0.011)


def test_a_run_needs_its_weights_and_its_cache(example_bf16):
    model = open_gguf(example_bf16)
    weights = sum(tensor.n_bytes for tensor in model.tensors)
    assert run_bytes(model, 4096) - run_bytes(model, 512) == (
        cache_bytes(model.metadata, 4096) - cache_bytes(model.metadata, 512)
    )
    assert run_bytes(model, 512) > weights + cache_bytes(model.metadata, 512)


def test_metadata_without_a_shape_is_refused(example_bf16):
    metadata = dict(open_gguf(example_bf16).metadata)
    del metadata["gemma4.block_count"]
    with pytest.raises(GgufError, match="block_count"):
        cache_bytes(metadata, 512)
    with pytest.raises(GgufError, match=r"head_count_kv has|sliding_window_pattern has"):
        cache_bytes({**metadata, "gemma4.block_count": uint32(500)}, 512)


def test_what_is_free_is_less_than_there_is():
    free = free_bytes()
    assert free is None or 0 < free < 1 << 50


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "current").write_text("400000\n")
    monkeypatch.setattr(capacity, "_GROUP_LIMITS", ((tmp_path / "max", tmp_path / "current"),))
    assert free_bytes() == 600000
    (tmp_path / "max").write_text("max\n")
    assert free_bytes() != 600000


def test_too_little_memory_names_the_files_and_both_sizes(monkeypatch, example_bf16):
    monkeypatch.setattr(capacity, "free_bytes", lambda: 1 << 30)
    model = SimpleNamespace(path=example_bf16)
    refuse_too_big([model], 1 << 30)
    with pytest.raises(
        RunError, match=r"example-BF16\.gguf would need about 2\.5 GiB of memory, and 1\.0 GiB are free"
    ):
        refuse_too_big([model], 5 << 29)
    monkeypatch.setattr(capacity, "free_bytes", lambda: None)
    refuse_too_big([model], 5 << 29)
