"""Adapters merged into a checkpoint, against PEFT's formulas in float64, and refusal of what is no plain LoRA."""

import json
import logging
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import PREFIX, linear_shapes, write_adapter
from checkpoints import (
    StoredData,
    random_weights,
    tensor_shapes,
    text_config,
    to_bfloat16,
    write_checkpoint,
    write_safetensors,
)

from gemma4_quant.conversion import convert
from gemma4_quant.converters import load_model
from gemma4_quant.converters.lora import merge_adapters
from gemma4_quant.errors import CheckpointError, Gemma4QuantError, UnmappedTensorsError
from gemma4_quant.formats.checkpoint import open_checkpoint
from gemma4_quant.formats.gguf_reader import read_gguf

Array = np.ndarray[Any, np.dtype[Any]]
QUERIES = ("model.layers.0.self_attn.q_proj.weight", (256, 256))
EMBEDDING = ("model.embed_tokens.weight", (2048, 256))
GATES = ("model.language_model.layers.1.experts.gate_up_proj", (8, 192, 256))
DOWNS = ("model.language_model.layers.1.experts.down_proj", (8, 256, 96))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")

    def base(kind: str) -> Path:
        return root / kind if (root / kind).exists() else write_checkpoint(root / kind, kind)

    return base


def values(data: bytes, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape).astype(np.float64)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).reshape(shape).astype(np.float64)


def base_values(name: str, shape: tuple[int, ...]) -> Array:
    return values(random_weights(name, shape, 0), "BF16", shape)


def factor(adapter: Path, name: str) -> Array:
    """Read a factor back, by other code than that under test."""
    data = (adapter / "adapter_model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entry = json.loads(data[8 : 8 + length])[PREFIX + name]
    start, stop = entry["data_offsets"]
    return values(data[8 + length + start : 8 + length + stop], entry["dtype"], tuple(entry["shape"]))


def merged(base: Path, *adapters: Path) -> Callable[[str], Array]:
    """Return what gives the merged values of a checkpoint tensor."""
    tensors = merge_adapters(open_checkpoint(base), adapters).tensors

    def read(name: str) -> Array:
        tensor = tensors[name]
        n_rows = math.prod(tensor.shape[:-1])
        return values(tensor.source.read_rows(0, n_rows).tobytes(), tensor.dtype, tensor.shape)

    return read


def product(adapter: Path, module: str) -> Array:
    return factor(adapter, f"{module}.lora_B.weight") @ factor(adapter, f"{module}.lora_A.weight")


def assert_close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_every_linear_layer_gets_scale_times_b_times_a(
    dtype: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path, linear_shapes("e"), dtype=dtype, lora_alpha=3)
    read = merged(bases("e"), adapter)
    for name, shape in linear_shapes("e"):
        change = 3 / 4 * product(adapter, name.removesuffix(".weight"))
        assert np.abs(change).max() > 0.1
        assert_close(read(name), base_values(name, shape) + change)


def test_tensors_that_the_adapter_does_not_change_keep_their_bytes(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(bases("dense"), adapters=[write_adapter(tmp_path, [QUERIES])])
    plain = load_model(bases("dense"))
    changed = [ours.name for ours, base in zip(model.tensors, plain.tensors, strict=True) if ours.type != base.type]
    assert changed == ["blk.0.attn_q.weight"]
    assert model.metadata == plain.metadata


def test_ranks_and_alphas_of_single_modules_win(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """The patterns are regular expressions for the end of a module's name (peft, get_pattern_key)."""
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1, 3, 4)]
    shapes = [(name, (256, 256)) for name in names]
    adapter = write_adapter(
        tmp_path,
        shapes,
        rank=4,
        ranks={names[0]: 2, names[2]: 8},
        lora_alpha=6,
        rank_pattern={"layers.0.self_attn.q_proj": 2, r"^model\.layers\.3\..*q_proj": 8},
        alpha_pattern={r"layers\.(1|3)\.self_attn\.q_proj": 5, "proj": 7},
    )
    read = merged(bases("dense"), adapter)
    for name, scale in zip(names, (6 / 2, 5 / 4, 5 / 8, 6 / 4), strict=True):
        assert_close(
            read(name), base_values(name, (256, 256)) + scale * product(adapter, name.removesuffix(".weight"))
        )


def test_rank_stabilized_adapters_are_scaled_by_the_root_of_the_rank(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path, [QUERIES], rank=4, lora_alpha=3, use_rslora=True)
    change = 3 / 2 * product(adapter, "model.layers.0.self_attn.q_proj")
    assert_close(merged(bases("dense"), adapter)(QUERIES[0]), base_values(*QUERIES) + change)


def embedding_change(adapter: Path, module: str) -> Array:
    return (factor(adapter, f"{module}.lora_embedding_B") @ factor(adapter, f"{module}.lora_embedding_A")).T


def test_embeddings_get_the_transposed_product(bases: Callable[[str], Path], tmp_path: Path) -> None:
    per_layer = ("model.embed_tokens_per_layer.weight", (2048, 384))
    adapter = write_adapter(tmp_path, [EMBEDDING, per_layer], lora_alpha=3)
    read = merged(bases("e"), adapter)
    for name, shape in (EMBEDDING, per_layer):
        change = 3 / 4 * embedding_change(adapter, name.removesuffix(".weight"))
        assert_close(read(name), base_values(name, shape) + change)


def test_an_output_matrix_that_was_not_trained_with_the_embedding_stays(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """PEFT wraps the embedding alone; the logits go on to be computed with the base's."""
    adapter = write_adapter(tmp_path / "input", [EMBEDDING])
    assert (merged(bases("dense"), adapter)("lm_head.weight") == base_values(*EMBEDDING)).all()
    names = [tensor.name for tensor in load_model(bases("dense"), adapters=[adapter]).tensors]
    assert "output.weight" in names
    tied = write_adapter(tmp_path / "tied", [EMBEDDING], ensure_weight_tying=True)
    assert "output.weight" not in [tensor.name for tensor in load_model(bases("dense"), adapters=[tied]).tensors]


def test_a_trained_output_matrix_leaves_the_embedding_alone(bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, [("lm_head.weight", (2048, 256))], lora_alpha=4)
    read = merged(bases("dense"), adapter)
    assert_close(read("lm_head.weight"), base_values(*EMBEDDING) + product(adapter, "lm_head"))
    assert (read(EMBEDDING[0]) == base_values(*EMBEDDING)).all()


def stacked_factors(adapter: Path, module: str) -> tuple[Array, Array]:
    a, b = factor(adapter, f"{module}.lora_A.weight"), factor(adapter, f"{module}.lora_B.weight")
    return a.reshape(8, -1, a.shape[1]), b.reshape(b.shape[0], -1, 8)


def test_experts_get_the_product_of_their_own_factors(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """As peft's ParamWrapper.get_delta_weight lays them out: "o r e, e r i -> e o i"."""
    adapter = write_adapter(tmp_path, [GATES, DOWNS], rank=3, lora_alpha=3)
    read = merged(bases("moe"), adapter)
    module = "model.language_model.layers.1.experts"
    for (name, shape), wrapper in ((DOWNS, module), (GATES, f"{module}.base_layer")):
        a, b = stacked_factors(adapter, wrapper)
        assert_close(read(name), base_values(name, shape) + np.einsum("ore,eri->eoi", b, a))


def test_experts_of_older_peft_have_inputs_and_outputs_swapped(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """ "o r e, e r i -> e i o": it took the middle size of every stack for the inputs."""
    swapped = [(name, (shape[0], shape[2], shape[1])) for name, shape in (GATES, DOWNS)]
    adapter = write_adapter(tmp_path, swapped, rank=3, lora_alpha=3)
    read = merged(bases("moe"), adapter)
    module = "model.language_model.layers.1.experts"
    for (name, shape), wrapper in ((DOWNS, module), (GATES, f"{module}.base_layer")):
        a, b = stacked_factors(adapter, wrapper)
        assert_close(read(name), base_values(name, shape) + np.einsum("ore,eri->eio", b, a))


def test_ranks_of_experts_are_found_by_the_parameters_name(bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = write_adapter(
        tmp_path, [GATES, DOWNS], rank=2, ranks={DOWNS[0]: 4}, rank_pattern={"experts.down_proj": 4}, lora_alpha=8
    )
    a, b = stacked_factors(adapter, "model.language_model.layers.1.experts")
    assert a.shape[1] == 4
    expected = base_values(*DOWNS) + 8 / 4 * np.einsum("ore,eri->eoi", b, a)
    assert_close(merged(bases("moe"), adapter)(DOWNS[0]), expected)


def test_tensors_trained_as_a_whole_replace_those_of_the_base(bases: Callable[[str], Path], tmp_path: Path) -> None:
    name = "model.layers.3.input_layernorm.weight"
    embedding = random_weights("another", (2048, 256), 5, "F32")
    adapter = write_adapter(
        tmp_path,
        [EMBEDDING],
        whole={
            name: ("F32", (256,), random_weights(name, (256,), 5, "F32")),
            "model.embed_tokens.base_layer.weight": ("F32", (2048, 256), embedding),
        },
        lora_alpha=4,
    )
    read = merged(bases("dense"), adapter)
    assert (read(name) == values(random_weights(name, (256,), 5, "F32"), "F32", (256,))).all()
    change = embedding_change(adapter, "model.embed_tokens")
    assert_close(read(EMBEDDING[0]), values(embedding, "F32", (2048, 256)) + change)


def test_several_adapters_add_up(bases: Callable[[str], Path], tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "first", [QUERIES], seed=1, lora_alpha=4)
    second = write_adapter(tmp_path / "second", [QUERIES], seed=2, lora_alpha=4)
    module = "model.layers.0.self_attn.q_proj"
    expected = base_values(*QUERIES) + product(first, module) + product(second, module)
    assert_close(merged(bases("dense"), first, second)(QUERIES[0]), expected)


@pytest.mark.parametrize(
    ("kind", "trained", "saved"),
    [("dense", "model.language_model.", "model."), ("unified", "model.", "model.language_model.")],
)
def test_adapters_of_text_and_multimodal_classes_fit_either_save(
    kind: str, trained: str, saved: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path, [(QUERIES[0].replace("model.", trained, 1), QUERIES[1])], lora_alpha=4)
    name = QUERIES[0].replace("model.", saved, 1)
    change = product(adapter, f"{trained}layers.0.self_attn.q_proj")
    assert_close(merged(bases(kind), adapter)(name), base_values(name, (256, 256)) + change)


def test_rows_are_the_same_in_whatever_pieces_they_are_read(bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, [GATES, DOWNS, *linear_shapes("moe")[:2]], rank=3)
    tensors = merge_adapters(open_checkpoint(bases("moe")), [adapter]).tensors
    for name in (GATES[0], DOWNS[0], linear_shapes("moe")[0][0]):
        source, n_rows = tensors[name].source, math.prod(tensors[name].shape[:-1])
        pieces = [source.read_rows(start, min(start + 77, n_rows)) for start in range(0, n_rows, 77)]
        assert np.concatenate(pieces).tobytes() == source.read_rows(0, n_rows).tobytes()


def test_sources_are_known_by_both_files(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """So that an interrupted conversion with another adapter is not taken up."""
    paths = [write_adapter(tmp_path / str(alpha), [QUERIES], lora_alpha=alpha) for alpha in (4, 8)]
    sources = [merge_adapters(open_checkpoint(bases("dense")), [path]).tensors[QUERIES[0]].source for path in paths]
    assert sources[0].identity != sources[1].identity
    names = [[file.path.name for file in source.files] for source in sources]
    assert names == [["model.safetensors", "adapter_model.safetensors"]] * 2


def test_a_module_that_is_not_there_may_be_missing_if_the_adapter_left_it_alone(
    bases: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Older transformers had key projections in KV-shared layers, which training never changed."""
    name = "model.layers.4.self_attn.k_proj"
    zero: dict[str, StoredData] = {
        f"{name}.lora_A.weight": ("F32", (4, 256), random_weights(name, (4, 256), 1, "F32")),
        f"{name}.lora_B.weight": ("F32", (64, 4), bytes(64 * 4 * 4)),
    }
    with caplog.at_level(logging.WARNING, "gemma4_quant"):
        load_model(bases("e"), adapters=[write_adapter(tmp_path, [], whole=zero)])
    assert f"does not change {name}" in caplog.text


def test_vision_modules_may_be_missing_in_a_text_only_save(
    bases: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tower = ("model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight", (64, 32))
    with caplog.at_level(logging.WARNING, "gemma4_quant"):
        load_model(bases("dense"), adapters=[write_adapter(tmp_path, [QUERIES, tower])])
    assert "1 modules of pictures and sound are not in the checkpoint" in caplog.text


def test_vision_modules_are_merged_where_they_are(bases: Callable[[str], Path], tmp_path: Path) -> None:
    name, shape = "model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight", (64, 32)
    adapter = write_adapter(tmp_path, [(name, shape)], lora_alpha=4)
    expected = base_values(name, shape) + product(adapter, name.removesuffix(".weight"))
    assert_close(merged(bases("moe"), adapter)(name), expected)


def whole(name: str, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    return {"whole": {name: (dtype, shape, bytes(math.prod(shape) * (4 if dtype == "F32" else 1)))}}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA"),
    "DoRA": ({"use_dora": True}, "uses DoRA"),
    "DoRA by its tensors": (
        whole("model.layers.0.self_attn.q_proj.lora_magnitude_vector", 256),
        "1 tensors are DoRA magnitudes",
    ),
    "trained biases": ({"bias": "lora_only"}, "trained biases"),
    "bias tensors": (whole("model.layers.0.self_attn.q_proj.bias", 256), "1 tensors are biases"),
    "biases in lora_B": ({"lora_bias": True}, "biases in lora_B"),
    "replicated layers": ({"layer_replication": [[0, 4]]}, "replicated layers"),
    "trained tokens": ({"trainable_token_indices": [1, 2]}, "single trained tokens"),
    "trained tokens by their tensors": (
        whole("model.embed_tokens.token_adapter.trainable_tokens_delta", 2, 256),
        "tokens trained one by one",
    ),
    "a start that changes the base": ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
    "activated LoRA": ({"alora_invocation_tokens": [1, 2]}, "--as-adapter"),
    "integer weights": (whole("model.norm.weight", 256, dtype="I8"), "not stored as F32, F16 or BF16"),
    "a name beyond measure": (whole("x" * 300, 1), "names longer than a module's"),
    "one factor alone": (whole("model.layers.1.self_attn.q_proj.lora_A.weight", 4, 256), "only one of lora_A"),
    "factors of different ranks": (
        {
            "whole": {
                "model.layers.1.self_attn.q_proj.lora_A.weight": ("F32", (4, 256), bytes(4096)),
                "model.layers.1.self_attn.q_proj.lora_B.weight": ("F32", (256, 5), bytes(5120)),
            }
        },
        "1 modules have no factors of a matrix",
    ),
    "another rank than the config's": ({"r": 8}, "4 rows in lora_A, adapter_config.json makes it 8"),
    "no rank": ({"r": 0}, "r is 0"),
    "no scale": ({"lora_alpha": "four"}, "lora_alpha is the text 'four'"),
    "patterns as list": ({"rank_pattern": [1]}, "rank_pattern is a list"),
    "a pattern that is none": ({"alpha_pattern": {"q_(": 1}}, "no regular expression"),
    "a pattern that takes for ever": ({"rank_pattern": {"(a|a)*(a|a)*b": 1}}, "too intricate"),
    "patterns without end": ({"rank_pattern": {str(i): 1 for i in range(5000)}}, "5,000 entries"),
    "a module that is not there": (whole("score.weight", 2, 256), "score.weight; it was trained on another model"),
    "added tokens": (whole("model.embed_tokens.weight", 2050, 256), "perhaps with added tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_lora_is_refused_by_name(name: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    settings, reason = REFUSED[name]
    with pytest.raises(CheckpointError) as caught:
        load_model(bases("dense"), adapters=[write_adapter(tmp_path, [QUERIES], **settings)])
    assert reason in str(caught.value)


def test_modules_that_the_checkpoint_lacks_are_listed(bases: Callable[[str], Path], tmp_path: Path) -> None:
    shapes = [(f"model.layers.{layer}.self_attn.q_proj.weight", (256, 256)) for layer in range(4, 8)]
    with pytest.raises(UnmappedTensorsError, match=r"2 modules.*layers\.6\.self_attn\.q_proj, .*layers\.7\."):
        load_model(bases("dense"), adapters=[write_adapter(tmp_path, shapes)])


def test_an_adapter_of_another_size_is_refused_with_both_sizes(bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, [(QUERIES[0], (256, 320))])
    with pytest.raises(CheckpointError, match=r"factors \[256, 4\] and \[4, 320\], .*q_proj\.weight is \[256, 256\]"):
        load_model(bases("dense"), adapters=[adapter])


def test_a_base_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", "dense")
    tensors: dict[str, StoredData] = {
        name: ("U8", shape, bytes(math.prod(shape)))
        if name == QUERIES[0]
        else ("BF16", shape, bytes(2 * math.prod(shape)))
        for name, shape in tensor_shapes("dense", text_config("dense"))
    }
    write_safetensors(base / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is stored as U8; start from the unquantized"):
        load_model(base, adapters=[write_adapter(tmp_path / "adapter", [QUERIES])])


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_adapter_names_the_missing_file(
    missing: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path, [QUERIES])
    (adapter / missing).unlink()
    with pytest.raises(CheckpointError, match=f"has no {missing}"):
        load_model(bases("dense"), adapters=[adapter])


def test_damaged_adapters_are_known_failures(bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, [QUERIES])
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        whole_file = (adapter / name).read_bytes()
        for cut in (0, 1, 7, 9, len(whole_file) // 2, len(whole_file) - 1):
            (adapter / name).write_bytes(whole_file[:cut])
            with pytest.raises(Gemma4QuantError):
                load_model(bases("dense"), adapters=[adapter])
        (adapter / name).write_bytes(whole_file)
    load_model(bases("dense"), adapters=[adapter])


def test_merged_weights_are_rounded_once(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """Nearest bfloat16 of base + change; all but ties that float32 decides otherwise."""
    adapter = write_adapter(tmp_path / "adapter", [QUERIES], lora_alpha=4)
    path = convert(bases("dense"), tmp_path / "merged.gguf", "bf16", adapters=[adapter]).path
    tensor = next(tensor for tensor in read_gguf(path).tensors if tensor.name == "blk.0.attn_q.weight")
    found = tensor.source.read_rows(0, 256).view("<u2")
    exact = base_values(*QUERIES) + product(adapter, "model.layers.0.self_attn.q_proj")
    expected = to_bfloat16(exact.astype("<f4"))
    assert (found != expected.reshape(256, 256)).mean() < 1e-3


def test_a_merged_file_is_not_named_like_the_base(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", "dense")
    adapter = write_adapter(tmp_path / "poet", [QUERIES])
    names = {convert(base).path.name, convert(base, adapters=[adapter]).path.name}
    assert names == {"Base-4.3M-BF16.gguf", "Base-4.3M-BF16-poet.gguf"}
    assert convert(base, tmp_path / "my.gguf", adapters=[adapter]).path == tmp_path / "my.gguf"
