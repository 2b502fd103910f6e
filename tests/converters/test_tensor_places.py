"""Every tensor of a checkpoint has its place or is an error, and all offenders are listed."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import StoredData, random_weights, tensor_shapes, text_config, write_checkpoint, write_safetensors

from gemma4_quant.converters import load_model
from gemma4_quant.errors import CheckpointError, UnmappedTensorsError
from gemma4_quant.model import Model

Change = Callable[[dict[str, StoredData]], object]


def convert_changed(directory: Path, kind: str, change: Change) -> Model:
    """Convert a checkpoint whose tensors were changed."""
    write_checkpoint(directory, kind)
    tensors: dict[str, StoredData] = {
        name: ("BF16", shape, random_weights(name, shape, 0))
        for name, shape in tensor_shapes(kind, text_config(kind))
    }
    change(tensors)
    write_safetensors(directory / "model.safetensors", tensors)
    return load_model(directory)


def names(model: Model) -> set[str]:
    return {tensor.name for tensor in model.tensors}


def reshape(name: str, *shape: int) -> Change:
    return lambda tensors: tensors.update({name: ("BF16", shape, random_weights(name, shape, 0))})


def test_unknown_tensors_are_all_listed(tmp_path: Path) -> None:
    extra = [f"model.layers.{layer}.adapter.weight" for layer in range(20)] + [
        "model.layers.6.input_layernorm.weight"
    ]

    def add(tensors: dict[str, StoredData]) -> None:
        tensors.update({name: ("BF16", (4,), bytes(8)) for name in extra})

    with pytest.raises(UnmappedTensorsError, match="21 tensors have no place") as caught:
        convert_changed(tmp_path, "dense", add)
    assert all(name in str(caught.value) for name in extra)


def test_missing_tensors_are_all_listed(tmp_path: Path) -> None:
    gone = ["model.norm.weight", "model.layers.3.self_attn.k_proj.weight", "model.layers.5.mlp.up_proj.weight"]

    def remove(tensors: dict[str, StoredData]) -> None:
        for name in gone:
            del tensors[name]

    with pytest.raises(UnmappedTensorsError, match=r"3 tensors that config\.json calls for are missing") as caught:
        convert_changed(tmp_path, "dense", remove)
    assert all(name.removeprefix("model.") in str(caught.value) for name in gone)


def test_unknown_and_missing_are_told_together(tmp_path: Path) -> None:
    def rename(tensors: dict[str, StoredData]) -> None:
        tensors["model.final_norm.weight"] = tensors.pop("model.norm.weight")

    with pytest.raises(UnmappedTensorsError, match=r"no place.*model\.final_norm\.weight.*missing: norm\.weight"):
        convert_changed(tmp_path, "dense", rename)


def test_wrong_shapes_are_all_listed(tmp_path: Path) -> None:
    def change(tensors: dict[str, StoredData]) -> None:
        reshape("model.layers.0.mlp.up_proj.weight", 256, 512)(tensors)
        reshape("model.norm.weight", 1, 256)(tensors)
        reshape("model.layers.1.layer_scalar")(tensors)

    with pytest.raises(CheckpointError, match="3 tensors do not have the shape") as caught:
        convert_changed(tmp_path, "dense", change)
    assert "model.layers.0.mlp.up_proj.weight is [256, 512], not [512, 256]" in str(caught.value)
    assert "model.norm.weight is [1, 256], not [256]" in str(caught.value)
    assert "model.layers.1.layer_scalar is [], not [1]" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("moe", "model.language_model.layers.0.experts.gate_up_proj", (8, 96, 256)),
        ("moe", "model.language_model.layers.0.experts.down_proj", (8, 96, 256)),
        ("moe", "model.language_model.layers.0.router.scale", (8,)),
        ("moe", "model.language_model.layers.0.router.per_expert_scale", (256,)),
        ("e", "model.layers.3.mlp.up_proj.weight", (512, 256)),
        ("e", "model.layers.2.self_attn.q_norm.weight", (64,)),
        ("e", "model.embed_tokens_per_layer.weight", (2048, 256)),
        ("dense", "model.layers.2.self_attn.k_proj.weight", (256, 256)),
    ],
)
def test_every_kind_of_tensor_is_checked_against_the_config(
    kind: str, name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"{name} is {list(shape)}, not [")):
        convert_changed(tmp_path, kind, reshape(name, *shape))


@pytest.mark.parametrize("dtype", ["U8", "I8", "F8_E4M3"])
def test_weights_that_are_quantized_already_are_refused(dtype: str, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=rf"{name} \({dtype}\); start from the unquantized"):
        convert_changed(
            tmp_path, "dense", lambda tensors: tensors.update({name: (dtype, (512, 256), bytes(512 * 256))})
        )


def test_the_same_tensor_under_two_prefixes_is_refused(tmp_path: Path) -> None:
    def twice(tensors: dict[str, StoredData]) -> None:
        tensors["model.language_model.norm.weight"] = tensors["model.norm.weight"]

    with pytest.raises(UnmappedTensorsError, match="1 tensors have no place"):
        convert_changed(tmp_path, "dense", twice)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "language_model.", ""])
def test_all_prefixes_that_text_models_are_saved_with_are_known(prefix: str, tmp_path: Path) -> None:
    def rename(tensors: dict[str, StoredData]) -> None:
        for name in list(tensors):
            tensors[prefix + name.removeprefix("model.")] = tensors.pop(name)

    assert names(convert_changed(tmp_path / "a", "dense", rename)) == names(
        load_model(write_checkpoint(tmp_path / "b", "dense"))
    )


def test_vision_and_audio_are_left_out_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    towers = (
        "model.vision_tower.x.weight",
        "model.audio_tower.layers.0.per_dim_scale",
        "model.embed_vision.embedding_projection.weight",
        "model.embed_audio.embedding_projection.weight",
        "model.vision_embedder.pos_embedding",
    )

    def add(tensors: dict[str, StoredData]) -> None:
        tensors.update({name: ("BF16", (4,), bytes(8)) for name in towers})

    with caplog.at_level(logging.INFO, "gemma4_quant"):
        model = convert_changed(tmp_path, "dense", add)
    assert "left out 5 tensors (vision and audio go into the projector file, not here)" in caplog.text
    assert names(model) == names(load_model(write_checkpoint(tmp_path / "b", "dense")))


def test_unused_keys_of_kv_shared_layers_are_kept_as_llama_cpp_keeps_them(tmp_path: Path) -> None:
    def add(tensors: dict[str, StoredData]) -> None:
        reshape("model.layers.4.self_attn.k_proj.weight", 64, 256)(tensors)
        reshape("model.layers.4.self_attn.v_proj.weight", 64, 256)(tensors)

    assert {"blk.4.attn_k.weight", "blk.4.attn_v.weight"} <= names(convert_changed(tmp_path, "e", add))


def test_values_of_global_layers_with_k_as_v_have_no_place(tmp_path: Path) -> None:
    with pytest.raises(UnmappedTensorsError, match=r"layers\.2\.self_attn\.v_proj\.weight"):
        convert_changed(tmp_path, "dense", reshape("model.layers.2.self_attn.v_proj.weight", 128, 256))


def test_an_untied_output_matrix_gets_its_place(tmp_path: Path) -> None:
    assert "output.weight" in names(convert_changed(tmp_path, "dense", reshape("lm_head.weight", 2048, 256)))


def test_an_output_matrix_that_config_calls_untied_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UnmappedTensorsError, match=r"missing: lm_head\.weight"):
        load_model(write_checkpoint(tmp_path, "dense", changes={"tie_word_embeddings": False}))


def test_embedding_rows_without_a_token_are_cut(tmp_path: Path) -> None:
    """llama.cpp's loader wants exactly one row a token, in both tables."""
    padded = load_model(
        write_checkpoint(tmp_path, "e", changes={"vocab_size": 2112, "vocab_size_per_layer_input": 2100})
    )
    tables = {tensor.name: tensor for tensor in padded.tensors if "token_embd" in tensor.name}
    assert {name: tensor.shape for name, tensor in tables.items()} == {
        "token_embd.weight": (2048, 256),
        "per_layer_token_embd.weight": (2048, 384),
    }
    whole = random_weights("model.embed_tokens.weight", (2112, 256), 0)
    assert tables["token_embd.weight"].source.read_rows(0, 2048).tobytes() == whole[: 2048 * 512]


def test_fewer_embedding_rows_than_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer.json has 2,048 tokens, but vocab_size in .* is 2,000"):
        load_model(write_checkpoint(tmp_path, "dense", changes={"vocab_size": 2000}))
