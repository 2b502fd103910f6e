"""Configs of encoders: forms they have, values that no encoder can have, and what llama.cpp could not run."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint, write_safetensors
from projector_checkpoints import (
    DIRECTORY_NAMES,
    KINDS,
    PROCESSOR,
    multimodal_config,
    stored,
    tower_shapes,
    write_multimodal,
)

from gemma4_quant.converters import load_model
from gemma4_quant.converters.projector import load_projector, open_projector
from gemma4_quant.converters.projector.config import (
    AudioFrames,
    Conformer,
    PatchEmbedder,
    ProjectorConfig,
    VisionTower,
    read_projector_config,
)
from gemma4_quant.converters.projector.runnable import check_encoders
from gemma4_quant.errors import CheckpointError, ConfigError, UnmappedTensorsError
from gemma4_quant.formats.checkpoint import Checkpoint, open_checkpoint
from gemma4_quant.projector_conversion import convert_projector

UNIFIED_EMPTY = {
    "architectures": ["Gemma4UnifiedForConditionalGeneration"],
    "text_config": {"hidden_size": 3840},
    "vision_config": {"model_type": "gemma4_unified_vision"},
    "audio_config": {"model_type": "gemma4_unified_audio"},
}
EMPTY = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "text_config": {"hidden_size": 1536},
    "vision_config": {"model_type": "gemma4_vision"},
    "audio_config": {"model_type": "gemma4_audio"},
}


def rewrite(directory: Path, change: Callable[[dict[str, Any]], None], name: str = "config.json") -> Path:
    path = directory / name
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return directory


def metadata(directory: Path) -> dict[str, Any]:
    return {key: value.decode() for key, value in load_projector(directory).metadata.items()}


def test_missing_keys_have_the_defaults_of_transformers() -> None:
    """Gemma4VisionConfig, Gemma4AudioConfig, and their unified kin, of transformers 5.23."""
    assert read_projector_config(EMPTY) == ProjectorConfig(
        text_hidden=1536,
        vision=VisionTower(
            hidden=768,
            feed_forward=3072,
            n_layers=16,
            n_heads=12,
            n_kv_heads=12,
            head_width=64,
            patch_size=16,
            pooling=3,
            n_positions=10_240,
            is_clipped=False,
            is_standardized=False,
            norm_epsilon=1e-6,
            rope_base=100.0,
            activation="gelu_pytorch_tanh",
        ),
        audio=Conformer(
            hidden=1024,
            n_layers=12,
            n_heads=8,
            channels=(128, 32),
            n_mel=128,
            kernel=5,
            output=1536,
            is_clipped=True,
            norm_epsilon=1e-6,
            chunk=12,
            left=13,
            right=0,
            logit_cap=50.0,
            residual_weight=0.5,
            activation="silu",
        ),
    )
    assert read_projector_config(UNIFIED_EMPTY) == ProjectorConfig(
        text_hidden=3840,
        vision=PatchEmbedder(patch_size=16, pooling=3, hidden=3840, n_positions=1120, norm_epsilon=1e-6),
        audio=AudioFrames(width=640, norm_epsilon=1e-6),
    )


@pytest.mark.parametrize("whole", [EMPTY, UNIFIED_EMPTY])
def test_defaults_are_runnable(whole: dict[str, Any]) -> None:
    check_encoders(read_projector_config(whole))


def fields() -> Iterator[tuple[str, str, str]]:
    """Every key of the encoders' configs that is read: of which kind, in which part, its name."""
    yield from (("full", "vision_config", key) for key in multimodal_config("full")["vision_config"])
    yield from (("full", "audio_config", key) for key in multimodal_config("full")["audio_config"])
    yield from (("unified", "vision_config", key) for key in multimodal_config("unified")["vision_config"])
    yield ("unified", "audio_config", "audio_embed_dim")
    for key in ("standardize", "pooling_kernel_size", "rms_norm_eps", "rope_parameters", "hidden_activation"):
        yield ("full", "vision_config", key)
    for key in (
        "attention_chunk_size",
        "attention_context_left",
        "attention_context_right",
        "attention_logit_cap",
        "conv_kernel_size",
        "hidden_act",
        "input_feat_size",
        "residual_weight",
        "rms_norm_eps",
        "use_clipped_linears",
    ):
        yield ("full", "audio_config", key)


UNREAD = ("model_type", "output_proj_dims")
"""Keys that decide nothing: the class name says what a config is, the unified projection's width is its input's."""


@pytest.mark.parametrize("value", [[], {}, -1, 0.5, 2**70, "12", 1e300], ids=str)
@pytest.mark.parametrize(
    ("kind", "part", "key"),
    [
        field
        for field in fields()
        if field[2] not in UNREAD or (field[0] == "full" and field[2] == "output_proj_dims")
    ],
)
def test_no_value_of_a_wrong_kind_gets_through(kind: str, part: str, key: str, value: Any) -> None:
    harmless = {
        "rms_norm_eps": [0.5, 2**70],
        "residual_weight": [0.5, 2**70],
        "attention_logit_cap": [0.5, 2**70],
        "rope_parameters": [{}],
        "hidden_act": ["12"],
        "hidden_activation": ["12"],
    }
    if value in harmless.get(key, []):
        return
    whole = multimodal_config(kind)
    whole[part][key] = value
    with pytest.raises(ConfigError, match=key):
        read_projector_config(whole)


@pytest.mark.parametrize("value", [[1], "towers", 3, True, 1.5])
@pytest.mark.parametrize("part", ["vision_config", "audio_config"])
def test_encoders_that_are_no_objects_are_refused(part: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=part):
        read_projector_config({**multimodal_config("full"), part: value})


@pytest.mark.parametrize(
    ("kind", "part", "changes", "complaint"),
    [
        ("full", "vision", {"head_dim": 6}, "cannot be rotated"),
        ("full", "vision", {"num_key_value_heads": 3}, "whole groups"),
        ("full", "audio", {"conv_kernel_size": 7}, "needs 5"),
        ("full", "audio", {"num_attention_heads": 3}, "whole heads"),
        ("full", "audio", {"hidden_size": 63, "num_attention_heads": 1}, "odd"),
        ("full", "audio", {"input_feat_size": 64}, "64 bands of sound become 16"),
        ("full", "audio", {"input_feat_size": 300, "subsampling_conv_channels": [300, 8]}, "more than 256"),
        ("unified", "audio", {"audio_embed_dim": 64}, "640 samples"),
    ],
)
def test_encoders_that_llama_cpp_aborts_on_are_refused_with_the_reason(
    kind: str, part: str, changes: dict[str, Any], complaint: str
) -> None:
    config = read_projector_config(multimodal_config(kind, **{part: changes}))
    with pytest.raises(ConfigError, match=f"llama.cpp cannot run: .*{complaint}"):
        check_encoders(config)


def test_what_llama_cpp_computes_otherwise_is_remarked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vision, audio = {"rope_parameters": {"rope_theta": 10000.0}}, {"attention_chunk_size": 8, "hidden_act": "gelu"}
    directory = write_multimodal(tmp_path / "model", vision=vision, audio=audio)
    with caplog.at_level(logging.WARNING, logger="gemma4_quant"):
        result = convert_projector(directory, tmp_path)
    assert [remark.split(",")[0] for remark in result.remarks] == [
        "vision_config.rope_parameters.rope_theta is 10000.0",
        "audio_config.attention_chunk_size is 8",
        "audio_config.hidden_act is gelu",
    ]
    assert caplog.messages == list(result.remarks)


@pytest.mark.parametrize("kind", ["full", "unified"])
def test_pooling_other_than_llama_cpps_default_is_written(kind: str, tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / "model", kind, vision={"pooling_kernel_size": 2})
    assert metadata(directory)["clip.vision.projector.scale_factor"] == 2


def test_heads_that_are_not_the_width_divided_are_written(tmp_path: Path) -> None:
    vision = {"head_dim": 32, "num_key_value_heads": 2}
    directory = write_multimodal(tmp_path / "model", vision=vision)
    # two heads of 32 for keys and values of hidden states 64 wide
    written = metadata(directory)
    assert written["clip.vision.attention.head_dim"] == 32
    assert written["clip.vision.attention.head_count_kv"] == 2


def test_bands_of_sound_follow_from_the_convolutions(tmp_path: Path) -> None:
    """llama.cpp's converter writes 128 whatever the convolutions make of it, and its loader aborts."""
    directory = write_multimodal(tmp_path / "model", audio={"subsampling_conv_channels": [64, 8]})
    assert metadata(directory)["clip.audio.num_mel_bins"] == 64


@pytest.mark.parametrize("kind", ["full", "unified"])
@pytest.mark.parametrize(("part", "other"), [("vision", "audio"), ("audio", "vision")])
@pytest.mark.parametrize("nothing", [None, {}])
def test_either_encoder_may_stand_alone(
    kind: str, part: str, other: str, nothing: dict[str, Any] | None, tmp_path: Path
) -> None:
    directory = write_multimodal(tmp_path / "model", kind)
    rewrite(directory, lambda config: config.update({f"{other}_config": nothing}))
    with pytest.raises(UnmappedTensorsError, match=f"{other}|vision_embedder"):
        load_projector(directory)
    shapes = tower_shapes(json.loads((directory / "config.json").read_text()))
    write_safetensors(directory / "model.safetensors", {name: stored(name, shape, "BF16") for name, shape in shapes})
    written = metadata(directory)
    assert f"clip.has_{part}_encoder" in written
    assert f"clip.has_{other}_encoder" not in written


def test_a_drafter_and_a_text_model_have_no_projector(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="drafter"):
        load_projector(write_checkpoint(tmp_path / "a", "assistant"))
    with pytest.raises(ConfigError, match="text-only"):
        load_projector(write_checkpoint(tmp_path / "b", "dense"))


def test_unused_limits_and_standardization_are_dropped_with_a_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_multimodal(tmp_path / "model", "wide")
    rewrite(directory, lambda config: config["vision_config"].update(use_clipped_linears=False, standardize=False))
    with caplog.at_level(logging.INFO, logger="gemma4_quant"):
        names = {tensor.name for tensor in load_projector(directory).tensors}
    assert not any("put_m" in name or "std_" in name for name in names)
    assert "vision_config.use_clipped_linears is false" in caplog.text
    assert "vision_config.standardize is false" in caplog.text
    assert "the text decoder goes into the model file" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_strange_and_missing_tensor_is_listed(kind: str, tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / DIRECTORY_NAMES[kind], kind)
    checkpoint = open_checkpoint(directory)
    tensors: dict[str, Any] = dict(checkpoint.tensors)
    projection = tensors.pop("model.embed_vision.embedding_projection.weight")
    strange = ("model.vision_tower.head.weight", "model.audio_tower.layers.9.norm_out.weight", "score.weight")
    tensors |= {name: replace(projection, name=name) for name in strange}
    with pytest.raises(UnmappedTensorsError) as caught:
        open_projector(Checkpoint(directory, checkpoint.config, tensors))
    assert all(name in str(caught.value) for name in (*strange, "embed_vision.embedding_projection.weight"))


def test_limits_may_be_stored_as_vectors_of_one(tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / "model")
    shapes = dict(tower_shapes(json.loads((directory / "config.json").read_text())))
    tensors = {name: stored(name, shape, "BF16") for name, shape in shapes.items()}
    vectors = {name: (dtype, shape or (1,), data) for name, (dtype, shape, data) in tensors.items()}
    before = rows_of(directory)
    write_safetensors(directory / "model.safetensors", vectors)
    assert rows_of(directory) == before


def rows_of(directory: Path) -> dict[str, bytes]:
    tensors = load_projector(directory).tensors
    return {tensor.name: tensor.source.read_rows(0, tensor.n_rows).tobytes() for tensor in tensors}


def test_wrong_shapes_are_listed(tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / "model")
    rewrite(directory, lambda config: config["vision_config"].update(position_embedding_size=99))
    with pytest.raises(CheckpointError, match=r"position_embedding_table is \[2, 320, 64\], not \[2, 99, 64\]"):
        load_projector(directory)


def test_text_conversion_leaves_the_encoders_out(tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / "model", with_text=True)
    names = {tensor.name for tensor in load_model(directory).tensors}
    assert not any(name.startswith(("v.", "a.", "mm.")) for name in names)
    assert "token_embd.weight" in names


def test_pictures_are_not_normalised_when_no_processor_says_how(tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / "model", with_processor=False)
    result = convert_projector(directory, tmp_path)
    assert len(result.remarks) == 1
    assert "processor_config.json" in result.remarks[0]
    written = metadata(directory)
    assert written["clip.vision.image_mean"] == [0.0, 0.0, 0.0]
    assert written["clip.vision.image_std"] == [1.0, 1.0, 1.0]


def test_processor_config_wins_over_preprocessor_config(tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / "model", with_processor=False)
    (directory / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [1, 2, 3], "media_proc_cfg": {"image_std": [4, 5, 6]}})
    )
    assert metadata(directory)["clip.vision.image_mean"] == [1.0, 2.0, 3.0]
    assert metadata(directory)["clip.vision.image_std"] == [4.0, 5.0, 6.0]
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": {"image_mean": [0.25] * 3}}))
    assert metadata(directory)["clip.vision.image_mean"] == [0.25] * 3
    assert metadata(directory)["clip.vision.image_std"] == [4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    "statistics",
    [
        {"image_mean": [0.0, 0.0]},
        {"image_mean": "0"},
        {"image_mean": [0.0, None, 0.0]},
        {"image_mean": [0.0, True, 0.0]},
        {"image_std": [1.0, 0.0, 1.0]},
        {"image_std": [1.0, 1e300, 1.0]},
        {"image_std": {}},
    ],
    ids=str,
)
def test_statistics_that_are_no_colours_are_refused(statistics: dict[str, Any], tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / "model")
    processor = {**PROCESSOR, "image_processor": {**PROCESSOR["image_processor"], **statistics}}
    (directory / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ConfigError, match=f"processor_config.json: {next(iter(statistics))}"):
        load_projector(directory)
