"""Drawing tokens: what is cut off, and how often each token comes, against closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.errors import InputError, NonFiniteError
from gemma4_quant.runner.sampling import SamplingOptions, likeliest, sample

EVERYTHING = SamplingOptions(top_k=0, top_p=1.0)


def draws(logits, options, n, seed=0):
    rng = np.random.default_rng(seed)
    row = np.asarray(logits, np.float32)
    return np.bincount([sample(row, options, rng) for _ in range(n)], minlength=len(row))


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


@given(
    logits=st.lists(st.floats(-30, 30, width=32) | st.sampled_from([0.0, 1.0, -np.inf]), min_size=1, max_size=300),
    k=st.integers(1, 300),
)
def test_the_likeliest_tokens_are_those_of_a_stable_sort(logits, k):
    row = np.array(logits, np.float32)
    k = min(k, len(row))
    np.testing.assert_array_equal(likeliest(row, k), np.argsort(-row, kind="stable")[:k])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature):
    logits = [1.0, 0.0, -1.0, 2.0, 1.5]
    options = SamplingOptions(temperature=temperature, top_k=0, top_p=1.0)
    n = 6000
    expected = softmax(np.array(logits) / temperature) * n
    assert (((draws(logits, options, n) - expected) ** 2) / expected).sum() < 18.5  # χ² of 4 degrees, 99.9 %


def test_top_k_keeps_the_likeliest_and_their_proportions():
    counts = draws([3.0, 1.0, 2.0, 0.0], SamplingOptions(top_k=2, top_p=1.0), 4000)
    assert counts[[1, 3]].sum() == 0
    assert counts[0] / 4000 == pytest.approx(softmax([3.0, 2.0])[0], abs=0.03)


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    assert np.flatnonzero(draws(logits, SamplingOptions(top_k=0, top_p=0.79), 2000)).tolist() == [0, 1]
    assert np.flatnonzero(draws(logits, SamplingOptions(top_k=0, top_p=0.81), 2000)).tolist() == [0, 1, 2]
    assert np.flatnonzero(draws(logits, SamplingOptions(top_k=0, top_p=1e-9), 50)).tolist() == [0]
    assert (draws(logits, EVERYTHING, 4000) > 0).all()


def test_temperature_zero_takes_the_first_of_the_likeliest():
    assert draws([1.0, 3.0, 3.0], SamplingOptions(temperature=0), 5).tolist() == [0, 5, 0]


def test_the_same_random_numbers_give_the_same_tokens():
    logits = np.random.default_rng(3).normal(size=500).astype(np.float32)
    one, other = ([sample(logits, SamplingOptions(), np.random.default_rng(5)) for _ in range(9)] for _ in range(2))
    assert one == other


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(value):
    logits = np.zeros(200, np.float32)
    logits[150] = value
    with pytest.raises(NonFiniteError, match="damaged"):
        sample(logits, SamplingOptions(), np.random.default_rng(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_tokens": 0},
        {"seed": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
)
def test_options_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong)).replace("n_", "").replace("_", "-")):
        SamplingOptions(**wrong).check()
