"""Layouts that llama.cpp asserts against are refused before it sees the file, and those it runs are not."""

import math
from dataclasses import replace
from typing import Any

import pytest
from checkpoints import write_checkpoint

from gemma4_quant.conversion import convert
from gemma4_quant.errors import GgufError
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.ggml import GgmlType
from gemma4_quant.metadata import Value, ValueType, float32, numbers, string, uint32
from gemma4_quant.model import Model
from gemma4_quant.runner.preflight import refuse_what_aborts

PATTERN = "gemma4.attention.sliding_window_pattern"
LOCAL, GLOBAL = True, False


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    root = tmp_path_factory.mktemp("models")
    return {
        kind: read_gguf(convert(write_checkpoint(root / kind, kind), root / f"{kind}.gguf").path)
        for kind in ("dense", "moe", "e", "assistant")
    }


def flags(*values: bool) -> Value:
    return numbers(ValueType.BOOL, values)


def counts(*values: int) -> Value:
    return numbers(ValueType.INT32, values)


ABORTS: dict[str, tuple[str, dict[str, Value | None], str]] = {
    "no local layer": ("dense", {PATTERN: flags(*[GLOBAL] * 6)}, "no layer with a sliding window"),
    "no local layer of a drafter": (
        "assistant",
        {"gemma4-assistant.attention.sliding_window_pattern": flags(*[GLOBAL] * 4)},
        "no layer with a sliding window",
    ),
    "a pattern of which only the rest is missing": ("dense", {PATTERN: flags(GLOBAL)}, "no layer with a sliding"),
    "local layers that share with a global one": (
        "e",
        {PATTERN: flags(LOCAL, GLOBAL, GLOBAL, LOCAL, LOCAL, GLOBAL)},
        "layer 3 takes the keys and values of layer 1",
    ),
    "global layers that share with a local one": (
        "e",
        {PATTERN: flags(LOCAL, LOCAL, LOCAL, LOCAL, LOCAL, GLOBAL)},
        "layer 5 takes the keys and values of layer 2",
    ),
    "heads that are not whole groups": ("e", {"gemma4.attention.head_count_kv": uint32(3)}, "whole groups"),
    "heads of one layer that are not": (
        "dense",
        {"gemma4.attention.head_count_kv": counts(2, 2, 1, 2, 3, 1)},
        "in layer 4",
    ),
    "no heads": ("e", {"gemma4.attention.head_count": uint32(0)}, "head_count is 0"),
    "no key-value heads": ("e", {"gemma4.attention.head_count_kv": uint32(0)}, "head_count_kv 0"),
    "more experts used than there are": ("moe", {"gemma4.expert_used_count": uint32(9)}, "expert_used_count 9"),
    "experts used in one layer that are not there": (
        "moe",
        {"gemma4.expert_used_count": counts(2, 2, 9, 2, 2, 2)},
        "expert_used_count 9",
    ),
    "experts of which none is used": ("moe", {"gemma4.expert_used_count": uint32(0)}, "expert_used_count 0"),
    "experts whose use is not told": ("moe", {"gemma4.expert_used_count": None}, "expert_used_count 0"),
    "experts without a count": ("moe", {"gemma4.expert_count": None}, "expert_count is 0"),
    "too many experts": ("moe", {"gemma4.expert_count": uint32(1025)}, "expert_count is 1025"),
    "as many groups as experts": ("moe", {"gemma4.expert_group_count": uint32(8)}, "expert_group_count is 8"),
    "groups that do not divide experts": ("moe", {"gemma4.expert_group_count": uint32(3)}, "expert_group_count is 3"),
    "groups of which none is used": ("moe", {"gemma4.expert_group_count": uint32(4)}, "expert_group_count is 4"),
    "groups without experts": ("dense", {"gemma4.expert_group_count": uint32(1)}, "expert_group_count is 1"),
    "more layers to draft than layers": ("dense", {"gemma4.nextn_predict_layers": uint32(7)}, "is 7, more than 6"),
    "unknown rope scaling": ("dense", {"gemma4.rope.scaling.type": string("wild")}, "'wild'"),
}

NO_NUMBERS = {
    "rope.freq_base": (0.0, -1.0, math.nan, math.inf, 1e-38),
    "rope.freq_base_swa": (0.0, -1.0, math.nan),
    "rope.scaling.factor": (math.nan, -2.0),
    "final_logit_softcapping": (math.nan, math.inf, -1.0),
}


def changed(model: Model, changes: dict[str, Value | None]) -> Model:
    metadata = {**model.metadata, **changes}
    return Model(model.path, {key: value for key, value in metadata.items() if value is not None}, model.tensors)


@pytest.mark.parametrize("name", ABORTS)
def test_layouts_that_llama_cpp_aborts_on_are_refused(name: str, models: dict[str, Model]) -> None:
    kind, changes, reason = ABORTS[name]
    with pytest.raises(GgufError, match=r"llama\.cpp cannot load") as caught:
        refuse_what_aborts(changed(models[kind], changes))
    assert reason in str(caught.value)


@pytest.mark.parametrize(("key", "number"), [(key, number) for key, all_ in NO_NUMBERS.items() for number in all_])
def test_numbers_from_which_no_logits_come_are_refused(key: str, number: float, models: dict[str, Model]) -> None:
    with pytest.raises(GgufError, match="no logit is a number"):
        refuse_what_aborts(changed(models["dense"], {f"gemma4.{key}": float32(number)}))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("blk.1.layer_output_scale.weight", GgmlType.F16), ("blk.1.attn_q.weight", GgmlType.I16)],
)
def test_types_that_llama_cpp_does_not_compute_with_are_refused(
    name: str, kind: GgmlType, models: dict[str, Model]
) -> None:
    model = models["dense"]
    tensors = [replace(tensor, type=kind) if tensor.name == name else tensor for tensor in model.tensors]
    with pytest.raises(GgufError, match=rf"1 tensors have a type .*: {name}"):
        refuse_what_aborts(replace(model, tensors=tensors))


RUN: dict[str, tuple[str, dict[str, Any]]] = {
    "as converted": ("dense", {}),
    "a mixture of experts": ("moe", {}),
    "shared keys and values": ("e", {}),
    "a drafter": ("assistant", {}),
    "groups of experts": (
        "moe",
        {"gemma4.expert_group_count": uint32(4), "gemma4.expert_group_used_count": uint32(2)},
    ),
    "no soft cap": ("dense", {"gemma4.final_logit_softcapping": float32(0.0)}),
    "a pattern of numbers": ("dense", {PATTERN: counts(1, 1, 0, 1, 1, 0)}),
    "what llama.cpp reports itself": ("dense", {PATTERN: numbers(ValueType.FLOAT32, [1.0] * 6)}),
    "arrays of another length": ("dense", {"gemma4.attention.head_count_kv": counts(2, 2)}),
}


@pytest.mark.parametrize("name", RUN)
def test_what_does_not_abort_passes(name: str, models: dict[str, Model]) -> None:
    kind, changes = RUN[name]
    refuse_what_aborts(changed(models[kind], changes))
