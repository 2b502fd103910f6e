"""Whatever stands in the JSON files of a checkpoint, the outcome is a model or one of our own errors."""

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from projector_checkpoints import write_multimodal

from gemma4_quant.converters import load_model
from gemma4_quant.converters.projector import load_projector
from gemma4_quant.errors import Gemma4QuantError
from gemma4_quant.model import Model

FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json")

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.integers(-2, 600),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.sampled_from(["<bos>", "full_attention", "proportional", "Gemma4ForCausalLM", "BPE"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module", params=["e", "moe", "unified"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_checkpoint(tmp_path_factory.mktemp("mutated") / "model", request.param)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][
        :5
    ]  # smaller files mutate where it matters more often
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


def mutate(data: st.DataObject, node: Any) -> Any:
    """Replace, remove or add one value somewhere in a JSON document."""
    if isinstance(node, dict) and node and data.draw(st.integers(0, 3)):
        key = data.draw(st.sampled_from(sorted(node)))
        if not data.draw(st.integers(0, 5)):
            del node[key]
        else:
            node[key] = mutate(data, node[key])
        return node
    if isinstance(node, list) and node and data.draw(st.integers(0, 3)):
        at = data.draw(st.integers(0, len(node) - 1))
        node[at] = mutate(data, node[at])
        return node
    return data.draw(values)


def mutated(data: st.DataObject, checkpoint: Path, names: Sequence[str], load: Callable[[Path], Model]) -> None:
    """Change one of the files, load the checkpoint, and restore the file."""
    path = checkpoint / data.draw(st.sampled_from(names))
    original = path.read_text()
    document = copy.deepcopy(json.loads(original))
    for _ in range(data.draw(st.integers(1, 3))):
        document = mutate(data, document)
    try:
        path.write_text(json.dumps(document))
        with suppress(Gemma4QuantError):
            model = load(checkpoint)
            assert all(tensor.n_bytes > 0 for tensor in model.tensors)
    finally:
        path.write_text(original)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_json_gives_a_model_or_an_error_of_ours(data: st.DataObject, checkpoint: Path) -> None:
    mutated(data, checkpoint, FILES, load_model)


@pytest.fixture(scope="module", params=["full", "unified"])
def multimodal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_multimodal(tmp_path_factory.mktemp("mutated") / "model", request.param)
    (directory / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": {"image_mean": [0, 0, 0]}}))
    return directory


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_json_gives_a_projector_or_an_error_of_ours(data: st.DataObject, multimodal: Path) -> None:
    names = ("config.json", "processor_config.json", "preprocessor_config.json", "generation_config.json")
    mutated(data, multimodal, names, load_projector)
