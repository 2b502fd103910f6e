"""Whatever stands in the JSON files of a checkpoint, the outcome is a model or one of our own errors."""

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma4_quant.converters import load_model
from gemma4_quant.errors import Gemma4QuantError

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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_json_gives_a_model_or_an_error_of_ours(data: st.DataObject, checkpoint: Path) -> None:
    path = checkpoint / data.draw(st.sampled_from(FILES))
    original = path.read_text()
    document = copy.deepcopy(json.loads(original))
    for _ in range(data.draw(st.integers(1, 3))):
        document = mutate(data, document)
    try:
        path.write_text(json.dumps(document))
        with suppress(Gemma4QuantError):
            model = load_model(checkpoint)
            assert all(tensor.n_bytes > 0 for tensor in model.tensors)
    finally:
        path.write_text(original)
