"""General metadata from model card, generation_config.json, config and directory name."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint

from gemma4_quant.converters import default_file_name, load_model
from gemma4_quant.errors import CheckpointError
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.metadata import string


def general(
    directory: Path, *, card: str | None = None, generation: Any = None, name: str | None = None
) -> dict[str, Any]:
    write_checkpoint(directory, "dense")
    if card is not None:
        (directory / "README.md").write_text(card)
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    found = load_model(directory, model_name=name).metadata
    return {
        key.removeprefix("general."): value.decode() for key, value in found.items() if key.startswith("general.")
    }


def test_the_directory_name_is_taken_apart(tmp_path: Path) -> None:
    """Seen in llama.cpp's converter for the same name."""
    found = general(tmp_path / "gemma-4-31B-it")
    assert (found["name"], found["basename"], found["finetune"]) == ("Gemma 4 31B It", "gemma-4", "31b-it")


def test_a_card_tells_licence_tags_and_base_model(tmp_path: Path) -> None:
    card = (
        "---\nlicense:\n- mit\n- other\nmodel_name: My Model\nbase_model: google/gemma-4-E2B\ntags: [a, b]\n---\ntext"
    )
    found = general(tmp_path / "m", card=card)
    assert (found["name"], found["license"], found["tags"]) == ("My Model", "mit,other", ["a", "b"])
    assert found["base_model.0.repo_url"] == "https://huggingface.co/google/gemma-4-E2B"


def test_recommended_sampling_is_kept(tmp_path: Path) -> None:
    found = general(tmp_path / "m", generation={"temperature": 1, "top_k": 64, "top_p": 0.5, "min_p": None})
    assert {key: found[key] for key in found if key.startswith("sampling.")} == {
        "sampling.top_k": 64,
        "sampling.top_p": 0.5,
        "sampling.temp": 1.0,
    }


@pytest.mark.parametrize(
    "card",
    [
        "",
        "no front matter",
        "---",
        "---\n---\n",
        "---\n- a\n- list\n---\n",
        "---\nkey: [unclosed\n---\n",
        "---\n" + "[" * 30_000 + "\n---\n",
        "---\na: !!python/object/apply:os.system ['true']\n---\n",
        "---\na: &a [*a]\n---\n",
        "---\nlong: " + "x" * 70_000 + "\n---\n",
    ],
)
def test_a_card_without_usable_front_matter_is_ignored(card: str, tmp_path: Path) -> None:
    assert general(tmp_path / "tiny-model", card=card)["name"] == "Tiny Model"


@pytest.mark.parametrize(
    "front",
    [
        "license: 5",
        "license: {a: b}",
        "license: [[mit]]",
        "tags: [1, two]",
        "version: 1.5",
        "base_model: [{name: 1}]",
        "author: [x]",
    ],
)
def test_a_card_of_wrong_types_is_refused_naming_the_file(front: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"front matter of .*README\.md"):
        general(tmp_path / "m", card=f"---\n{front}\n---\n")


@pytest.mark.parametrize("settings", [{"top_k": "64"}, {"top_k": 0.5}, {"temperature": [1]}, {"top_p": True}])
def test_sampling_of_the_wrong_type_is_refused(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: "):
        general(tmp_path / "m", generation=settings)


@pytest.mark.parametrize("tokens", ["7", {"a": 1}, [1.5], [True], [-1], [2048], [[1]]])
def test_suppressed_tokens_must_be_token_ids(tokens: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "unified")
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": tokens}))
    with pytest.raises(CheckpointError, match="suppress_tokens"):
        load_model(tmp_path)


def test_a_name_cannot_lead_the_default_file_elsewhere() -> None:
    name = default_file_name({"general.name": string("../../etc/x\\y:\0z")}, FileType.Q4_K_M)
    assert name == "-..-etc-x-y--z-Q4_K_M.gguf"
    assert default_file_name({}, GgmlType.F16) == "ggml-model-F16.gguf"
