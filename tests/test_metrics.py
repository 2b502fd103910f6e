"""Perplexity and divergence against numpy in double precision and closed forms."""

from math import exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_quant.errors import NonFiniteError, ShapeError
from gemma4_quant.measuring.metrics import (
    Comparison,
    compare,
    joined,
    mean_estimate,
    negative_log_likelihoods,
    perplexity,
    summarise,
)


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def random_logits(seed, shape=(9, 3001), scale=4.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def compared(reference, candidate, targets, n_threads=1):
    return compare(reference, candidate, targets, negative_log_likelihoods(reference, targets), n_threads=n_threads)


@given(seed=st.integers(0, 2**32), n_vocab=st.integers(2, 700), scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
@settings(max_examples=60, deadline=None)
def test_likelihoods_equal_a_softmax_in_double_precision(seed, n_vocab, scale):
    logits = random_logits(seed, (5, n_vocab), scale)
    targets = np.random.default_rng(seed).integers(0, n_vocab, 5).astype(np.int32)
    expected = -log_softmax(logits)[np.arange(5), targets]
    np.testing.assert_allclose(negative_log_likelihoods(logits, targets), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("n_threads", [1, 3, 64])
def test_comparison_equals_its_definition_with_any_number_of_threads(n_threads):
    reference = random_logits(1)
    candidate = reference + random_logits(2, scale=0.05)
    targets = np.arange(9, dtype=np.int32) * 300
    log_p, log_q = log_softmax(reference), log_softmax(candidate)
    found = compared(reference, candidate, targets, n_threads)
    np.testing.assert_allclose(found.divergence, (np.exp(log_p) * (log_p - log_q)).sum(axis=1), rtol=1e-8)
    rows = np.arange(9)
    np.testing.assert_allclose(found.delta_p, np.exp(log_q[rows, targets]) - np.exp(log_p[rows, targets]), atol=1e-12)
    np.testing.assert_array_equal(found.same_top, reference.argmax(axis=1) == candidate.argmax(axis=1))


def test_a_model_does_not_diverge_from_itself():
    logits = random_logits(3, (4, 262_144))
    found = compared(logits, logits.copy(), np.zeros(4, np.int32))
    assert found.divergence.max() < 1e-12
    assert found.same_top.all()
    assert summarise(found).delta_p_rms.value == 0.0


def test_a_shift_of_all_logits_changes_nothing():
    logits = random_logits(4).round(2)
    found = compared(logits, logits + np.float32(64), np.zeros(9, np.int32))
    assert found.divergence.max() < 1e-9


def test_divergence_of_two_coins_is_the_closed_form():
    p, q = 0.5, 0.25
    reference = np.log(np.array([[p, 1 - p]], np.float32))
    candidate = np.log(np.array([[q, 1 - q]], np.float32))
    found = compared(reference, candidate, np.zeros(1, np.int32))
    assert found.divergence[0] == pytest.approx(p * log(p / q) + (1 - p) * log((1 - p) / (1 - q)), rel=1e-6)
    assert found.delta_p[0] == pytest.approx(q - p, rel=1e-6)


def test_tiny_divergences_keep_their_digits():
    reference = random_logits(5, (1, 50_000))
    candidate = reference.copy()
    candidate[0, 7] += np.float32(2**-10)
    # One logit moved by d: KL = ln(1 + p·(eᵈ − 1)) − p·d, about p·d²/2.
    p = float(np.exp(log_softmax(reference)[0, 7]))
    d = float(candidate[0, 7]) - float(reference[0, 7])
    found = compared(reference, candidate, np.zeros(1, np.int32))
    assert found.divergence[0] == pytest.approx(np.log1p(p * np.expm1(d)) - p * d, rel=1e-3)


def test_perplexity_of_even_odds_is_the_number_of_choices():
    estimate = perplexity(
        negative_log_likelihoods(np.zeros((50, 37), np.float32), np.arange(37, dtype=np.int32)[:50].repeat(2)[:50])
    )
    assert estimate.value == pytest.approx(37)
    assert estimate.error == pytest.approx(0, abs=1e-6)


def test_the_error_of_a_mean_is_that_of_llama_perplexity():
    values = np.array([1.0, 2.0, 4.0, 8.0])
    estimate = mean_estimate(values)
    assert estimate.value == 3.75
    assert estimate.error == pytest.approx(sqrt(((values**2).mean() - 3.75**2) / 3))
    assert perplexity(values).error == pytest.approx(exp(3.75) * estimate.error)


def test_summary_describes_the_joined_parts():
    n = 1000
    parts = [
        Comparison(
            divergence=np.linspace(0, 1, n + 1)[1:][start::2],
            same_top=np.arange(n)[start::2] % 4 != 0,
            delta_p=np.full(n // 2, 0.1) * (-1) ** start,
            reference_nll=np.full(n // 2, 2.0),
            candidate_nll=np.full(n // 2, 2.5),
        )
        for start in (0, 1)
    ]
    summary = summarise(joined(parts))
    assert summary.mean.value == pytest.approx(0.5005)
    assert summary.median == pytest.approx(0.5005)
    assert summary.percentile_99 == pytest.approx(0.99001)
    assert summary.percentile_99_9 == pytest.approx(0.999001)
    assert summary.maximum == 1.0
    assert summary.same_top.value == 0.75
    assert summary.same_top.error == pytest.approx(sqrt(0.75 * 0.25 / (n - 1)))
    assert summary.delta_p_rms.value == pytest.approx(0.1)
    assert (summary.log_perplexity_ratio.value, summary.log_perplexity_ratio.error) == (0.5, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value):
    logits = random_logits(6)
    logits[3, 5] = value
    with pytest.raises(NonFiniteError, match="1 of 9 positions, first at 3"):
        negative_log_likelihoods(logits, np.zeros(9, np.int32))


@pytest.mark.parametrize("targets", [[0] * 8, [0] * 8 + [3001], [-1] * 9])
def test_targets_that_do_not_fit_the_logits_are_refused(targets):
    with pytest.raises(ShapeError):
        negative_log_likelihoods(random_logits(7), np.array(targets, np.int32))


def test_logits_of_different_vocabularies_are_not_compared():
    reference = random_logits(8)
    with pytest.raises(ShapeError, match="cannot be compared"):
        compared(reference, reference[:, :-1], np.zeros(9, np.int32))
