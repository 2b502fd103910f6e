"""Results stored as JSON: nothing is lost, and nothing else than results is read."""

import contextlib
import dataclasses
import json
import math

import pytest
from bench_results import full_result
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_quant.errors import ResultsError
from gemma4_quant.measuring.result_files import from_json, read_results, to_json

DOCUMENT = json.loads(to_json(full_result()))


def places(value, path=()):
    """Yield the path of every value in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


PLACES = [path for path in places(DOCUMENT) if path]
WRONG = st.sampled_from(
    [None, True, -1, 1e300, 10**30, "text", "\0", "x" * 100_000, [], {}, [[]], {"a": 1}, [None] * 3, float("1e400")]
)


def test_results_come_back_as_they_were():
    assert from_json(to_json(full_result())) == full_result()


def test_a_file_of_results_is_read(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(to_json(full_result()), encoding="utf-8")
    assert read_results(path) == full_result()


def test_numbers_that_json_cannot_say_come_back_as_nan():
    result = full_result()
    (first, *others) = result.models
    score = dataclasses.replace(
        first.score.overall, perplexity=dataclasses.replace(first.score.overall.perplexity, value=math.inf)
    )
    odd = dataclasses.replace(first, score=dataclasses.replace(first.score, overall=score))
    again = from_json(to_json(dataclasses.replace(result, models=(odd, *others))))
    assert math.isnan(again.models[0].score.overall.perplexity.value)


def test_keys_of_later_versions_are_passed_over():
    assert from_json(json.dumps({**DOCUMENT, "invented": [1]})) == full_result()


@given(place=st.sampled_from(PLACES), wrong=WRONG)
@settings(max_examples=150, deadline=None)
def test_a_value_of_another_kind_is_refused_or_harmless(place, wrong):
    document = json.loads(json.dumps(DOCUMENT))
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = wrong
    with contextlib.suppress(ResultsError):
        again = from_json(json.dumps(document))
        assert to_json(from_json(to_json(again))) == to_json(again)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("models", 1, "file", "n_bytes"), "5", r"models\[1\]\.file\.n_bytes is the text '5', not a whole number"),
        (("models", 1, "file", "n_bytes"), True, "is true, not a whole number"),
        (("models",), {}, "models is an object, not a list"),
        (("conditions", "confidence"), "high", "conditions.confidence is the text 'high', not a number"),
        (("reference", "kind"), "oracle", "not one of model, compact, llama"),
        (("format",), "gemma4-quant bench 0", "not a bench result of this version"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(place, value, message):
    document = json.loads(json.dumps(DOCUMENT))
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(ResultsError, match=message):
        from_json(json.dumps(document), "old.json")


def test_a_missing_value_is_named_with_its_place():
    document = json.loads(json.dumps(DOCUMENT))
    del document["models"][2]["score"]["overall"]["perplexity"]["value"]
    with pytest.raises(ResultsError, match=r"models\[2\]\.score\.overall\.perplexity\.value is missing"):
        from_json(json.dumps(document))


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"format": "gemma4-quant bench 1"}'])
def test_other_documents_are_refused(data):
    with pytest.raises(ResultsError):
        from_json(data)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ResultsError, match=r"nothing\.json"):
        read_results(tmp_path / "nothing.json")
