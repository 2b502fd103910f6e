"""Perplexity and divergence against numpy in double precision and closed forms."""

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_quant.errors import NonFiniteError, ShapeError
from gemma4_quant.measuring.position_scores import compare, joined, negative_log_likelihoods


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def random_logits(seed, shape=(9, 3001), scale=4.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


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
    found = compare(reference, candidate, targets, n_threads=n_threads)
    np.testing.assert_allclose(found.divergence, (np.exp(log_p) * (log_p - log_q)).sum(axis=1), rtol=1e-8)
    rows = np.arange(9)
    np.testing.assert_allclose(found.nll, -log_q[rows, targets], rtol=1e-11)
    np.testing.assert_allclose(found.reference_nll, -log_p[rows, targets], rtol=1e-11)
    np.testing.assert_array_equal(found.same_top, reference.argmax(axis=1) == candidate.argmax(axis=1))


def test_a_model_does_not_diverge_from_itself():
    logits = random_logits(3, (4, 262_144))
    found = compare(logits, logits.copy(), np.zeros(4, np.int32))
    assert found.divergence.max() < 1e-12
    assert found.same_top.all()
    np.testing.assert_array_equal(found.nll, found.reference_nll)


def test_a_shift_of_all_logits_changes_nothing():
    logits = random_logits(4).round(2)
    found = compare(logits, logits + np.float32(64), np.zeros(9, np.int32))
    assert found.divergence.max() < 1e-9


def test_divergence_of_two_coins_is_the_closed_form():
    p, q = 0.5, 0.25
    reference = np.log(np.array([[p, 1 - p]], np.float32))
    candidate = np.log(np.array([[q, 1 - q]], np.float32))
    found = compare(reference, candidate, np.zeros(1, np.int32))
    assert found.divergence[0] == pytest.approx(p * log(p / q) + (1 - p) * log((1 - p) / (1 - q)), rel=1e-6)


def test_tiny_divergences_keep_their_digits():
    reference = random_logits(5, (1, 50_000))
    candidate = reference.copy()
    candidate[0, 7] += np.float32(2**-10)
    # One logit moved by d: KL = ln(1 + p·(eᵈ − 1)) − p·d, about p·d²/2.
    p = float(np.exp(log_softmax(reference)[0, 7]))
    d = float(candidate[0, 7]) - float(reference[0, 7])
    found = compare(reference, candidate, np.zeros(1, np.int32))
    assert found.divergence[0] == pytest.approx(np.log1p(p * np.expm1(d)) - p * d, rel=1e-3)


def test_pieces_are_joined_in_order():
    logits, targets = random_logits(9), np.arange(9, dtype=np.int32)
    whole = compare(logits, logits[::-1].copy(), targets)
    parts = [compare(logits[i : i + 4], logits[::-1][i : i + 4].copy(), targets[i : i + 4]) for i in (0, 4, 8)]
    again = joined(parts)
    for name in ("nll", "reference_nll", "divergence", "same_top"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value):
    logits = random_logits(6)
    logits[3, 5] = value
    targets = np.zeros(9, np.int32)
    for failing in (
        lambda: negative_log_likelihoods(logits, targets),
        lambda: compare(random_logits(6), logits, targets),
        lambda: compare(logits, random_logits(6), targets),
    ):
        with pytest.raises(NonFiniteError, match="1 of 9 positions, first at 3"):
            failing()


@pytest.mark.parametrize("targets", [[0] * 8, [0] * 8 + [3001], [-1] * 9])
def test_targets_that_do_not_fit_the_logits_are_refused(targets):
    with pytest.raises(ShapeError):
        negative_log_likelihoods(random_logits(7), np.array(targets, np.int32))


def test_logits_of_different_vocabularies_are_not_compare():
    reference = random_logits(8)
    with pytest.raises(ShapeError, match="cannot be compared"):
        compare(reference, reference[:, :-1], np.zeros(9, np.int32))
