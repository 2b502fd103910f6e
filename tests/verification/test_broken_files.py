"""Every way in which published files were broken, and some more: verify must say no, and name the fault."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from checkpoints import GLOBAL, LOCAL, write_checkpoint
from gguf_editing import overwrite, rewrite, rows_of
from typer.testing import CliRunner

from gemma4_quant.arrays import ByteRows
from gemma4_quant.cli.app import app
from gemma4_quant.conversion import convert
from gemma4_quant.converters import load_model
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import FileType
from gemma4_quant.metadata import Value, ValueType, boolean, float32, numbers, string, strings, uint32
from gemma4_quant.model import Model
from gemma4_quant.progress import SilentProgress
from gemma4_quant.quantization import quantize
from gemma4_quant.verification.settings import compare_settings
from gemma4_quant.verification.templates import compare_templates
from gemma4_quant.verification.tensors import compare_tensors
from gemma4_quant.verification.vocabulary import compare_vocabulary

TYPES, TOKENS = "tokenizer.ggml.token_type", "tokenizer.ggml.tokens"
TEMPLATE = "tokenizer.chat_template"
VALUES, DOWN = "blk.0.attn_v.weight", "blk.1.ffn_down_exps.weight"


@dataclass(frozen=True)
class Models:
    """A random mixture of experts as a checkpoint, its BF16 and Q4_K_M files, and a file of another checkpoint."""

    checkpoint: Path
    bf16: Path
    small: Path
    other: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Converted and quantized by the package."""
    root = tmp_path_factory.mktemp("verify")
    changes = {"num_hidden_layers": 3, "layer_types": [LOCAL, LOCAL, GLOBAL]}
    checkpoint = write_checkpoint(root / "gemma-4-moe", "moe", changes=changes)
    other = write_checkpoint(root / "gemma-4-other", "moe", seed=1, changes=changes)
    return Models(
        checkpoint,
        convert(checkpoint, root / "bf16.gguf", "bf16").path,
        quantize(checkpoint, root / "small.gguf", FileType.Q4_K_M).path,
        quantize(other, root / "other.gguf", FileType.Q4_K_M).path,
    )


@pytest.fixture(scope="module")
def original(models: Models) -> Model:
    """The checkpoint as the converter sees it."""
    return load_model(models.checkpoint)


def verdict(path: Path, against: Path) -> tuple[int, str]:
    """Return the exit code of verify and what it prints."""
    result = CliRunner().invoke(app, ["verify", str(path), "--against", str(against), "-t", "1"])
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout + result.stderr


def value(models: Models, key: str) -> Value:
    return read_gguf(models.small).metadata[key]


def typed(models: Models, kind: int, *names: str) -> Value:
    """Return the token types with those of `names` changed."""
    types = value(models, TYPES).array().copy()
    texts = value(models, TOKENS).decode()
    types[[texts.index(name) for name in names]] = kind
    return numbers(ValueType.INT32, types)


def layers_changed(models: Models, key: str, layer: int, number: int) -> Value:
    found = value(models, key)
    entries = found.array().copy()
    entries[layer] = number
    return numbers(found.item or ValueType.INT32, entries)


def swapped(first: int, second: int) -> Callable[[ByteRows], ByteRows]:
    def swap(rows: ByteRows) -> ByteRows:
        changed = rows.copy()
        changed[[first, second]] = rows[[second, first]]
        return changed

    return swap


def swapped_experts(rows: ByteRows) -> ByteRows:
    return rows.reshape(8, -1, rows.shape[1])[[1, 0, *range(2, 8)]].reshape(rows.shape)


def scaled(factor: float) -> Callable[[ByteRows], ByteRows]:
    """Return a function that scales BF16 rows."""

    def scale(rows: ByteRows) -> ByteRows:
        wide = rows.view("<u2").astype(np.uint32) << 16
        return ((wide.view(np.float32) * np.float32(factor)).view(np.uint32) >> 16).astype("<u2").view(np.uint8)

    return scale


def moved(amount: float, count: int | None = None) -> Callable[[ByteRows], ByteRows]:
    """Return a function that adds to the first weights of F32 rows."""

    def move(rows: ByteRows) -> ByteRows:
        weights = rows.view("<f4").copy()
        weights[:, :count] += np.float32(amount)
        return weights.view(np.uint8)

    return move


METADATA: dict[str, tuple[str, Callable[[Models], dict[str, Value | None]]]] = {
    "tool tokens typed control": ("<|tool_call>", lambda m: {TYPES: typed(m, 3, "<|tool_call>", "<tool_call|>")}),
    "a turn's end typed control token as letters": ("<eos>", lambda m: {TYPES: typed(m, 1, "<eos>")}),
    "no token types": (TYPES, lambda _: {TYPES: None}),
    "no add_bos": ("add_bos_token", lambda _: {"tokenizer.ggml.add_bos_token": None}),
    "add_bos switched off": ("add_bos_token", lambda _: {"tokenizer.ggml.add_bos_token": boolean(False)}),
    "a space before every text": ("add_space_prefix", lambda _: {"tokenizer.ggml.add_space_prefix": boolean(True)}),
    "another eos": ("eos_token_id", lambda _: {"tokenizer.ggml.eos_token_id": uint32(106)}),
    "no bos": ("bos_token_id", lambda _: {"tokenizer.ggml.bos_token_id": None}),
    "an eot that ends no turn": ("eot_token_id", lambda _: {"tokenizer.ggml.eot_token_id": uint32(0)}),
    "another tokenizer model": ("tokenizer.ggml.model", lambda _: {"tokenizer.ggml.model": string("llama")}),
    "two tokens swapped": (
        "token 900",
        lambda m: {TOKENS: strings([*(t := value(m, TOKENS).decode())[:900], t[901], t[900], *t[902:]])},
    ),
    "merges in another order": (
        "merge 0",
        lambda m: {"tokenizer.ggml.merges": strings(value(m, "tokenizer.ggml.merges").decode()[::-1])},
    ),
    "no merges": ("merges", lambda _: {"tokenizer.ggml.merges": None}),
    "a stale chat template": (
        TEMPLATE,
        lambda m: {TEMPLATE: string(value(m, TEMPLATE).decode().replace("<|turn>", "<start_of_turn>"))},
    ),
    "a template that is cut off": (TEMPLATE, lambda m: {TEMPLATE: string(value(m, TEMPLATE).decode()[:300])}),
    "no chat template": (TEMPLATE, lambda _: {TEMPLATE: None}),
    "another architecture": ("general.architecture", lambda _: {"general.architecture": string("gemma3")}),
    "wrong KV heads in a layer": (
        "head_count_kv",
        lambda m: {
            "gemma4.attention.head_count_kv": layers_changed(m, "gemma4.attention.head_count_kv", 2, 2),
        },
    ),
    "another window pattern": (
        "sliding_window_pattern",
        lambda m: {
            "gemma4.attention.sliding_window_pattern": layers_changed(
                m, "gemma4.attention.sliding_window_pattern", 1, 0
            ),
        },
    ),
    "another window": ("sliding_window", lambda _: {"gemma4.attention.sliding_window": uint32(512)}),
    "no soft-cap": ("softcapping", lambda _: {"gemma4.final_logit_softcapping": None}),
    "RoPE bases swapped": (
        "freq_base_swa",
        lambda _: {"gemma4.rope.freq_base": float32(1e4), "gemma4.rope.freq_base_swa": float32(1e6)},
    ),
    "a stretched RoPE": ("rope.scaling.factor", lambda _: {"gemma4.rope.scaling.factor": float32(2.0)}),
    "shared layers": ("shared_kv_layers", lambda _: {"gemma4.attention.shared_kv_layers": uint32(2)}),
    "a short context": ("context_length", lambda _: {"gemma4.context_length": uint32(2048)}),
    "fewer experts used": ("expert_used_count", lambda _: {"gemma4.expert_used_count": uint32(1)}),
}


PUBLISHED = (
    "tool tokens typed control",
    "no add_bos",
    "another eos",
    "an eot that ends no turn",
    "wrong KV heads in a layer",
    "another window pattern",
    "a stale chat template",
    "a template that is cut off",
    "merges in another order",
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_metadata_that_was_published_wrong_is_named(name: str, models: Models, tmp_path: Path) -> None:
    named, change = METADATA[name]
    broken = rewrite(models.small, tmp_path / "broken.gguf", values=change(models))
    code, output = verdict(broken, models.checkpoint)
    assert code == 1
    faults = [line for line in output.splitlines() if line.startswith("  fault: ")]
    assert any(named in line for line in faults), output
    assert len(faults) <= 12, output


@pytest.mark.parametrize("name", METADATA)
def test_wrong_metadata_is_named(name: str, models: Models, original: Model) -> None:
    named, change = METADATA[name]
    changed = {**original.metadata, **change(models)}
    metadata = {key: value for key, value in changed.items() if value is not None}
    findings = [*compare_vocabulary(metadata, original.metadata)]
    findings += compare_settings(metadata, original.metadata, "gemma4.").findings
    if TEMPLATE in change(models):
        findings += compare_templates(metadata, original.metadata).findings
    faults = [fault for fault in findings if fault.is_fault]
    assert any(named in f"{fault.subject} {fault.problem}" for fault in faults), findings
    assert len(faults) <= 12


TENSORS: dict[str, tuple[str, str, dict[str, Callable[[ByteRows], ByteRows]]]] = {
    "two rows swapped in Q4_K": (
        "small",
        "rows 3 of expert 0, 9 of expert 0",
        {"blk.0.ffn_gate_up_exps.weight": swapped(3, 9)},
    ),
    "two experts swapped": ("small", "of expert 0", {DOWN: swapped_experts}),
    "rows in the order of another RoPE": (
        "small",
        "blk.2.attn_k.weight",
        {"blk.2.attn_k.weight": lambda rows: rows.reshape(2, -1, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)},
    ),
    "a tensor of zeros": ("small", "off by 100 %", {DOWN: np.zeros_like}),
    "norms with one added": ("bf16", "blk.1.attn_norm.weight", {"blk.1.attn_norm.weight": moved(1)}),
    "one weight of a norm": ("small", "1 weights differ", {"blk.2.ffn_norm.weight": moved(0.01, 1)}),
    "rope_freqs that all rotate": (
        "small",
        "rope_freqs.weight",
        {"rope_freqs.weight": lambda rows: moved(1.0)(0 * rows)},
    ),
    "weights a tenth too large": ("bf16", "weights differ", {"blk.1.attn_q.weight": scaled(1.1)}),
}


@pytest.mark.parametrize("name", TENSORS)
def test_wrong_weights_are_named(name: str, models: Models, original: Model, tmp_path: Path) -> None:
    source, named, rows = TENSORS[name]
    broken = read_gguf(rewrite(getattr(models, source), tmp_path / "broken.gguf", rows=rows))
    faults = compare_tensors(broken, original, n_threads=1, progress=SilentProgress()).part.faults
    assert {fault.subject for fault in faults} == set(rows)
    assert any(named in f"{fault.subject} {fault.problem}" for fault in faults), faults


def test_layers_swapped_are_named(models: Models, tmp_path: Path) -> None:
    one, two = "blk.0.attn_output.weight", "blk.1.attn_output.weight"
    code, output = verdict(rewrite(models.small, tmp_path / "b.gguf", names={one: two, two: one}), models.checkpoint)
    assert code == 1
    assert f"fault: {one}" in output
    assert f"fault: {two}" in output


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.1.layer_output_scale.weight"])
def test_a_missing_tensor_is_named(name: str, models: Models, tmp_path: Path) -> None:
    code, output = verdict(rewrite(models.small, tmp_path / "b.gguf", names={name: None}), models.checkpoint)
    assert code == 1
    assert f"fault: {name} is missing" in output


def test_a_tensor_without_counterpart_is_named(models: Models, tmp_path: Path) -> None:
    broken = rewrite(models.small, tmp_path / "b.gguf", names={"rope_freqs.weight": "rope_factors_long.weight"})
    code, output = verdict(broken, models.checkpoint)
    assert code == 1
    assert "rope_factors_long.weight has no counterpart" in output


def test_a_tensor_of_another_shape_is_named(models: Models, tmp_path: Path) -> None:
    tensor = next(t for t in read_gguf(models.small).tensors if t.name == VALUES)
    broken = rewrite(models.small, tmp_path / "b.gguf", shapes={VALUES: (2, tensor.shape[0] // 2, tensor.shape[1])})
    code, output = verdict(broken, models.checkpoint)
    assert code == 1
    assert f"fault: {VALUES} has the shape 256 × 64 × 2, not 256 × 128" in output


def test_a_tensor_of_another_checkpoint_is_named(models: Models, tmp_path: Path) -> None:
    stale = rows_of(read_gguf(models.other), "blk.2.ffn_up.weight")
    broken = rewrite(models.small, tmp_path / "b.gguf", rows={"blk.2.ffn_up.weight": lambda _: stale})
    code, output = verdict(broken, models.checkpoint)
    assert code == 1
    assert "fault: blk.2.ffn_up.weight" in output


@pytest.mark.parametrize(
    ("data", "problem"), [(b"\x00\x7e", "NaN or infinite"), (b"\x00\x7c", "NaN or infinite"), (bytes(144), "rows 7")]
)
def test_damaged_blocks_are_named(data: bytes, problem: str, models: Models, tmp_path: Path) -> None:
    """A scale that is NaN or infinite, and a super-block overwritten with zeros."""
    broken = tmp_path / "b.gguf"
    broken.write_bytes(models.small.read_bytes())
    overwrite(broken, "blk.1.attn_q.weight", 7, data)
    code, output = verdict(broken, models.checkpoint)
    assert code == 1
    assert problem.replace("rows 7", "row 7") in output
    assert "blk.1.attn_q.weight" in output


def test_a_file_cut_short_is_named(models: Models, tmp_path: Path) -> None:
    whole = models.small.read_bytes()
    for length in (len(whole) - 100, len(whole) // 2, 5000):
        (tmp_path / "short.gguf").write_bytes(whole[:length])
        code, output = verdict(tmp_path / "short.gguf", models.checkpoint)
        assert code == 1
        assert "cut short" in output


def test_a_file_of_another_checkpoint_is_refused(models: Models) -> None:
    code, output = verdict(models.other, models.checkpoint)
    assert code == 1
    assert "more (--json lists all)" in output
    assert "metadata: ok" in output


def test_whole_files_pass(models: Models) -> None:
    for path, against in ((models.bf16, models.checkpoint), (models.small, models.bf16)):
        code, output = verdict(path, against)
        assert code == 0, output
        assert "fault" not in output
