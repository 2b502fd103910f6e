"""Scores kept in a file: what is there is not lost, and no other file is taken for it."""

import logging

import numpy as np
import pytest

from gemma4_quant.measuring.position_scores import PositionScores
from gemma4_quant.measuring.score_store import ScoreStore

KEY = bytes(range(32))


def some(n, seed=0):
    values = np.random.default_rng(seed).random((3, n))
    return PositionScores(*values, values[0] > 0.5)


def same(found, expected):
    return all(
        np.array_equal(getattr(found, name), getattr(expected, name))
        for name in ("nll", "reference_nll", "divergence", "same_top")
    )


@pytest.mark.parametrize("in_file", [True, False])
def test_scores_come_back_when_all_are_there(tmp_path, in_file):
    with ScoreStore(2, 10, tmp_path / "a" / "scores" if in_file else None, key=KEY) as store:
        store.put(1, 0, PositionScores(*(values[:4] for values in vars(some(10)).values())))
        assert store.scores(1) is None
        assert store.has(1, slice(0, 4))
        assert not store.has(1, slice(3, 5))
        assert not store.has(0, slice(0, 4))
        store.put(1, 4, PositionScores(*(values[4:] for values in vars(some(10)).values())))
        assert same(store.scores(1), some(10))


def test_a_store_opened_again_goes_on(tmp_path):
    with ScoreStore(2, 10, tmp_path / "scores", key=KEY) as store:
        store.put(0, 0, some(10))
    with ScoreStore(2, 10, tmp_path / "scores", key=KEY) as store:
        assert same(store.scores(0), some(10))
        assert store.scores(1) is None


def test_scores_without_a_reference_have_no_divergence(tmp_path):
    with ScoreStore(1, 3, tmp_path / "scores", key=KEY) as store:
        store.put(0, 0, PositionScores(np.ones(3)))
    with ScoreStore(1, 3, tmp_path / "scores", key=KEY) as store:
        assert store.scores(0).divergence is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"X" + data[1:],
        lambda data: data[:8] + bytes(32) + data[40:],
        lambda data: data[:0],
    ],
)
def test_another_file_is_begun_anew(tmp_path, spoil):
    path = tmp_path / "scores"
    with ScoreStore(1, 10, path, key=KEY) as store:
        store.put(0, 0, some(10))
    path.write_bytes(spoil(path.read_bytes()))
    with ScoreStore(1, 10, path, key=KEY) as store:
        assert not store.has(0, slice(0, 10))
        store.put(0, 0, some(10, seed=1))
    with ScoreStore(1, 10, path, key=KEY) as store:
        assert same(store.scores(0), some(10, seed=1))


def test_a_link_is_not_followed(tmp_path, caplog):
    target = tmp_path / "precious"
    target.write_bytes(b"text")
    (tmp_path / "scores").symlink_to(target)
    with caplog.at_level(logging.WARNING), ScoreStore(1, 10, tmp_path / "scores", key=KEY) as store:
        store.put(0, 0, some(10))
        assert same(store.scores(0), some(10))
    assert target.read_bytes() == b"text"
    assert "begins anew" in caplog.text


def test_discarding_deletes_the_file(tmp_path):
    store = ScoreStore(1, 10, tmp_path / "scores", key=KEY)
    store.discard()
    assert not (tmp_path / "scores").exists()
