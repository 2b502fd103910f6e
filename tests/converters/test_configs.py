"""config.json in the forms it has had, and values that no model can have."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import DIRECTORY_NAMES, GLOBAL, LOCAL, ROPE, config, text_config, write_checkpoint

from gemma4_quant.converters import load_model
from gemma4_quant.converters.decoders import read_decoder
from gemma4_quant.converters.families import find_family
from gemma4_quant.converters.runnable import check_runnable
from gemma4_quant.converters.text_config import Defaults, TextConfig, read_text_config, text_fields
from gemma4_quant.errors import ConfigError


def read(whole: dict[str, Any]) -> TextConfig:
    return read_text_config(text_fields(whole), find_family(whole).defaults)


def changed(kind: str = "dense", **changes: Any) -> dict[str, Any]:
    """The config of a kind with other values; the value `REMOVED` takes the key out."""
    text = {**text_config(kind), **changes}
    return config(kind, {key: value for key, value in text.items() if value is not REMOVED})


REMOVED = object()


def metadata(tmp_path: Path, kind: str, changes: dict[str, Any]) -> dict[str, Any]:
    model = load_model(write_checkpoint(tmp_path / DIRECTORY_NAMES[kind], kind, changes=changes))
    return {key: value.decode() for key, value in model.metadata.items() if key.startswith("gemma4.")}


def test_old_and_new_keys_of_global_attention_mean_the_same() -> None:
    new = changed()
    old = changed(per_layer_config=REMOVED, global_head_dim=128, num_global_key_value_heads=1)
    assert read(old) == read(new)


def test_nested_and_flat_configs_mean_the_same() -> None:
    flat = changed()
    assert read({"architectures": flat["architectures"], "text_config": flat}) == read(flat)


def test_keys_outside_text_config_count_when_it_lacks_them() -> None:
    nested = {
        "architectures": ["Gemma4ForCausalLM"],
        "sliding_window": 77,
        "text_config": changed(sliding_window=REMOVED),
    }
    assert read(nested).window == 77


def test_global_kv_heads_count_only_with_k_as_v() -> None:
    """As transformers reads the old key; E-family configs have it as a leftover."""
    old = changed(per_layer_config=REMOVED, global_head_dim=128, num_global_key_value_heads=1, attention_k_eq_v=False)
    assert read(old).n_kv_heads_global == 2


@pytest.mark.parametrize("missing", [REMOVED, None])
def test_missing_and_null_keys_take_the_defaults_of_transformers(missing: Any) -> None:
    """Values of Gemma4TextConfig in transformers 5.23."""
    keys = ("max_position_embeddings", "rope_parameters", "rms_norm_eps", "sliding_window", "head_dim", "vocab_size")
    found = read(changed(**dict.fromkeys(keys, missing)))
    assert (found.context_length, found.window, found.head_width_local, found.vocabulary) == (
        131072,
        512,
        256,
        262144,
    )
    assert (found.rope_base_local, found.rope_base_global, found.rotated_share) == (10000.0, 1000000.0, 0.25)
    assert found.norm_epsilon == 1e-6


def test_unified_configs_have_defaults_of_their_own() -> None:
    found = read(changed("unified", max_position_embeddings=REMOVED, sliding_window=REMOVED))
    assert (found.context_length, found.window, found.per_layer_width) == (262144, 1024, 0)


def test_layer_types_default_to_five_local_layers_and_a_global_one() -> None:
    found = read(changed(num_hidden_layers=13, layer_types=REMOVED, per_layer_config=REMOVED, global_head_dim=128))
    # the thirteenth would be local, but the last layer is always global
    assert [layer for layer, local in enumerate(found.is_local) if not local] == [5, 11, 12]


def test_a_null_global_head_width_means_that_of_local_heads() -> None:
    assert read(changed(per_layer_config=REMOVED, global_head_dim=None)).head_width_global == 64
    assert read(changed(per_layer_config=REMOVED)).head_width_global == 512


def stored(width: int, n_kv: int, layer: int = 2) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a global layer that tell its sizes."""
    attention = f"layers.{layer}.self_attn"
    return {f"{attention}.q_norm.weight": (width,), f"{attention}.k_proj.weight": (width * n_kv, 256)}


@pytest.mark.parametrize("missing", [REMOVED, None])
def test_what_a_config_leaves_out_of_global_attention_is_told_by_the_tensors(missing: Any) -> None:
    whole = changed(per_layer_config=missing, global_head_dim=missing, num_global_key_value_heads=missing)
    found = read_decoder(whole, stored(96, 2)).config
    assert (found.head_width_global, found.n_kv_heads_global) == (96, 2)


def test_what_a_config_says_of_global_attention_wins_over_the_tensors() -> None:
    """Whose shapes are then refused, with both sizes."""
    whole = changed(per_layer_config=REMOVED, global_head_dim=128, num_global_key_value_heads=1)
    assert read_decoder(whole, stored(96, 2)).config == read(whole)
    assert read_decoder(changed(), stored(96, 2)).config == read(changed())


@pytest.mark.parametrize("shapes", [{}, stored(0, 1), stored(96, 0), stored(128, 1, layer=1), {"x": (1,)}])
def test_tensors_that_tell_nothing_leave_the_defaults(shapes: dict[str, tuple[int, ...]]) -> None:
    whole = changed(per_layer_config=REMOVED)
    assert read_decoder(whole, shapes).config == read(whole)


def test_a_checkpoint_whose_config_does_not_size_global_attention_converts(tmp_path: Path) -> None:
    """llama.cpp's converter stops there."""
    plain = load_model(write_checkpoint(tmp_path / "a" / "model", "dense"))
    directory = write_checkpoint(tmp_path / "b" / "model", "dense")
    text = text_config("dense", {"per_layer_config": None})
    (directory / "config.json").write_text(json.dumps(config("dense", text)))
    assert load_model(directory).metadata == plain.metadata


def test_layers_may_repeat_in_per_layer_config_what_holds_for_all() -> None:
    sizes = {"head_dim": 64, "num_key_value_heads": 2}
    everything = {**changed()["per_layer_config"], "0": sizes, "1": sizes}
    assert read(changed(per_layer_config=everything)) == read(changed())


@pytest.mark.parametrize(
    ("outer", "inner", "tied"),
    [
        (True, False, True),
        (False, True, True),
        (False, False, False),
        (REMOVED, False, True),
        (None, REMOVED, True),
        (False, REMOVED, False),
    ],
)
def test_embeddings_of_multimodal_models_are_untied_by_both_configs(outer: Any, inner: Any, tied: bool) -> None:
    whole = {**changed("unified", tie_word_embeddings=inner), "tie_word_embeddings": outer}
    assert read({key: value for key, value in whole.items() if value is not REMOVED}).is_tied is tied


def test_the_old_name_of_the_width_of_experts_is_known() -> None:
    old = changed("moe")
    old["text_config"]["expert_intermediate_size"] = old["text_config"].pop("moe_intermediate_size")
    assert read(old) == read(changed("moe"))


def test_no_expert_keys_write_no_expert_metadata(tmp_path: Path) -> None:
    found = metadata(tmp_path, "unified", {})
    assert not [key for key in found if "expert" in key]


def test_bidirectional_attention_is_written(tmp_path: Path) -> None:
    """Checked once against llama.cpp's converter, which gave the same values."""
    found = metadata(tmp_path, "dense", {"use_bidirectional_attention": "all", "sliding_window": 65})
    assert found["gemma4.attention.causal"] is False
    assert found["gemma4.attention.sliding_window"] == 64


def test_equal_kv_heads_are_written_as_one_number(tmp_path: Path) -> None:
    assert metadata(tmp_path, "moe", {"num_global_key_value_heads": 2})["gemma4.attention.head_count_kv"] == 2


@pytest.mark.parametrize(
    ("architectures", "found"),
    [
        (["LlamaForCausalLM"], "LlamaForCausalLM"),
        (["Gemma3ForCausalLM"], "Gemma3ForCausalLM"),
        (["Gemma4ForCausalLM "], "Gemma4ForCausalLM "),
        ("Gemma4ForCausalLM", "not a list"),
        ([None], "a list"),
        ([["Gemma4ForCausalLM"]], "a list"),
        ({"0": "Gemma4ForCausalLM"}, "an object"),
        (7, "the number 7"),
    ],
)
def test_another_architecture_is_refused_naming_what_is_supported(architectures: Any, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_family({"architectures": architectures})
    assert found in str(caught.value)


def test_a_config_without_architectures_is_known_by_its_model_type() -> None:
    assert find_family({"model_type": "gemma4_text"}) is find_family({"architectures": ["Gemma4ForCausalLM"]})
    with pytest.raises(ConfigError, match="no architectures; this tool converts Gemma4ForCausalLM, "):
        find_family({"model_type": "llama"})


NUMBER_KEYS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
    "vocab_size",
    "num_kv_shared_layers",
    "rms_norm_eps",
    "final_logit_softcapping",
    "hidden_size_per_layer_input",
)


@pytest.mark.parametrize("key", NUMBER_KEYS)
@pytest.mark.parametrize("value", ["4", [4], {"a": 4}, True, -1, 2**140, 10**400, -0.5])
def test_a_number_of_the_wrong_type_or_size_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"config\.json: {key} is ") as caught:
        read(changed(**{key: value}))
    assert len(str(caught.value)) < 300


WRONG_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "fractional layers": ({"num_hidden_layers": 6.0}, "num_hidden_layers is the number 6.0"),
    "too many layers": ({"num_hidden_layers": 513}, "outside 1..512"),
    "layer types of another length": ({"layer_types": [LOCAL, GLOBAL]}, "2 entries for 6 layers"),
    "layer types not a list": ({"layer_types": "full_attention"}, "not a list"),
    "unknown layer type": ({"layer_types": [LOCAL] * 5 + ["mamba"]}, "mamba"),
    "layer types of numbers": ({"layer_types": [0] * 6}, "holds 0"),
    "layer types of lists": ({"layer_types": [[LOCAL]] * 6}, "holds "),
    "flag as text": ({"attention_k_eq_v": "yes"}, "not true or false"),
    "flag as number": ({"enable_moe_block": 1}, "not true or false"),
    "another activation": ({"hidden_activation": "silu"}, "'silu'; llama.cpp knows gelu_pytorch_tanh"),
    "activation as number": ({"hidden_activation": 1}, "not a text"),
    "rope as list": ({"rope_parameters": []}, "not an object"),
    "rope without global part": (
        {"rope_parameters": {LOCAL: ROPE[LOCAL]}},
        "rope_parameters.full_attention is missing",
    ),
    "rope of another type": (
        {"rope_parameters": {**ROPE, GLOBAL: {**ROPE[GLOBAL], "rope_type": "yarn"}}},
        "'yarn'; llama.cpp's gemma4 has 'proportional'",
    ),
    "stretched rope": ({"rope_parameters": {**ROPE, GLOBAL: {**ROPE[GLOBAL], "factor": 8.0}}}, "stretches"),
    "partly rotated local heads": (
        {"rope_parameters": {**ROPE, LOCAL: {**ROPE[LOCAL], "partial_rotary_factor": 0.5}}},
        "rotates whole local heads",
    ),
    "rotating more than a head": (
        {"rope_parameters": {**ROPE, GLOBAL: {**ROPE[GLOBAL], "partial_rotary_factor": 2.0}}},
        "more than a whole head",
    ),
    "rope base missing": (
        {"rope_parameters": {**ROPE, LOCAL: {}}},
        "rope_parameters.sliding_attention.rope_theta is missing",
    ),
    "rope base zero": ({"rope_parameters": {**ROPE, LOCAL: {"rope_theta": 0}}}, "above zero"),
    "rope base beyond float32": ({"rope_parameters": {**ROPE, LOCAL: {"rope_theta": 1e39}}}, "float32"),
    "per-layer config as list": ({"per_layer_config": [1]}, "not an object"),
    "per-layer config of a layer beyond": ({"per_layer_config": {"6": {}}}, "not the number of one of 6 layers"),
    "per-layer config of a negative layer": ({"per_layer_config": {"-1": {}}}, "not the number of one of"),
    "per-layer config of another script's digit": ({"per_layer_config": {"\u0662": {}}}, "not the number of one of"),
    "per-layer config of a long number": ({"per_layer_config": {"1" * 5000: {}}}, "not the number of one of"),
    "per-layer config of a number": ({"per_layer_config": {"2": 128}}, "not an object"),
    "per-layer config of another key": ({"per_layer_config": {"2": {"intermediate_size": 1}}}, "no place for that"),
    "per-layer config of one global layer": ({"per_layer_config": {"2": {"head_dim": 128}}}, "needs one"),
    "per-layer config of a local layer": ({"per_layer_config": {"0": {"head_dim": 128}}}, "changes local layers"),
    "experts without a count": ({"enable_moe_block": True}, "num_experts is missing"),
    "too many experts": ({"enable_moe_block": True, "num_experts": 1025}, "outside 1..1024"),
    "more layers shared than there are": ({"num_kv_shared_layers": 7}, "outside 0..6"),
    "text_config as list": ({"text_config": [1]}, "text_config is a list, not an object"),
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_an_impossible_config_is_refused_naming_key_and_value(name: str) -> None:
    changes, reason = WRONG_VALUES[name]
    with pytest.raises(ConfigError) as caught:
        read(changed(**changes))
    assert reason in str(caught.value)
    assert "config.json" in str(caught.value)


UNRUNNABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "the layer before shared ones is local": (
        "e",
        {"layer_types": [LOCAL, GLOBAL, LOCAL, LOCAL, LOCAL, GLOBAL]},
        "layer 2 must be global",
    ),
    "no local layer before the last own one": (
        "e",
        {"layer_types": [LOCAL, GLOBAL, GLOBAL, LOCAL, LOCAL, GLOBAL]},
        "layer 1 must be local",
    ),
    "one layer with its own keys": ("e", {"num_kv_shared_layers": 5}, "at least two layers"),
    "no layer with its own keys": ("e", {"num_kv_shared_layers": 6}, "at least two layers"),
    "a single layer": (
        "dense",
        {"num_hidden_layers": 1, "layer_types": None, "per_layer_config": None},
        "two layers",
    ),
    "no local layer": (
        "dense",
        {"layer_types": [GLOBAL] * 6, "per_layer_config": None},
        "no layer has sliding-window",
    ),
    "heads that are not whole groups": ("dense", {"num_attention_heads": 3}, "not whole groups"),
    "odd heads": ("dense", {"head_dim": 63}, "cannot be rotated in pairs"),
    "more experts used than there are": ("moe", {"top_k_experts": 9}, "top_k_experts is 9, but num_experts is 8"),
    "experts of which none is used": ("dense", {"num_experts": 4}, "top_k_experts is missing"),
}


@pytest.mark.parametrize("name", UNRUNNABLE)
def test_a_model_that_llama_cpp_aborts_on_is_refused_with_the_reason(name: str) -> None:
    kind, changes, reason = UNRUNNABLE[name]
    with pytest.raises(ConfigError, match=r"llama\.cpp cannot run") as caught:
        check_runnable(read(changed(kind, **changes)))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "types",
    [
        [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL],
        [GLOBAL, LOCAL, GLOBAL, GLOBAL, LOCAL, GLOBAL],
        [LOCAL, GLOBAL, GLOBAL, GLOBAL, GLOBAL, GLOBAL],  # no shared layer is local, so none looks for a local one
    ],
)
def test_layouts_that_llama_cpp_runs_are_accepted(types: list[str]) -> None:
    check_runnable(read(changed("e", layer_types=types)))


def test_defaults_are_those_of_the_common_config() -> None:
    assert find_family({"architectures": ["Gemma4ForConditionalGeneration"]}).defaults == Defaults()
