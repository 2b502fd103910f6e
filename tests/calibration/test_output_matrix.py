"""Importance of the tied output matrix: of the activations that enter it, mixed with what lookups ask for."""

import numpy as np
import pytest
from checkpoints import EXAMPLE
from gguf_editing import rows_of

from gemma4_quant.calibration import CalibrationOptions, calibrate
from gemma4_quant.calibration.importance import Entry, read_importance
from gemma4_quant.calibration.output_matrix import LOOKUP_SHARE, with_lookups
from gemma4_quant.formats.gguf_reader import read_gguf
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.text import chunk_text

TIED = "token_embd.weight"
SOFT_CAP = 30.0  # final_logit_softcapping of the example


def test_mixing_keeps_the_total_and_is_linear():
    entry = Entry(np.array([[1.0, 3.0, 8.0]]), np.array([2.0]))
    other = Entry(np.array([[0.0, 3.0, 3.0]]), np.array([4.0]))
    np.testing.assert_array_equal(with_lookups({TIED: entry}, 0.25)[TIED].sums, [[1.75, 3.25, 7.0]])
    np.testing.assert_array_equal(with_lookups({TIED: entry}, 0)[TIED].sums, entry.sums)
    np.testing.assert_array_equal(with_lookups({TIED: entry}, 1)[TIED].sums, [[4.0, 4.0, 4.0]])
    both = Entry(entry.sums + other.sums, entry.counts + other.counts)
    added = sum(with_lookups({TIED: each})[TIED].sums for each in (entry, other))
    np.testing.assert_allclose(with_lookups({TIED: both})[TIED].sums, added, rtol=1e-15)


@pytest.mark.parametrize("name", ["output.weight", "blk.0.attn_q.weight"])
def test_only_a_matrix_that_is_looked_up_too_is_mixed(name):
    entry = Entry(np.array([[1.0, 3.0]]), np.array([2.0]))
    assert with_lookups({name: entry})[name] is entry


def test_it_is_gathered_from_the_activations_that_the_logits_are_made_of(example_f32, tmp_path):
    """Logits are W·x, soft-capped; with as many tokens as columns or more, they give x back by least squares."""
    text = EXAMPLE / "calibration.txt"
    options = CalibrationOptions(n_ctx=64, n_chunks=2, n_threads=1)
    result = calibrate(example_f32, [text], output=tmp_path / "imatrix.gguf", options=options)
    with LoadedModel(example_f32) as model:
        chunks = chunk_text(model, text, 64, 2).tokens
        session_options = SessionOptions(n_ctx=64, n_sequences=2, n_batch=128, n_outputs=128, n_threads=1)
        with Session(model, session_options) as session:
            logits = session.decode(chunks, 0, slice(None)).reshape(128, -1).astype(np.float64)
    weight = rows_of(read_gguf(example_f32), TIED).view("<f4").astype(np.float64)
    inputs = np.linalg.lstsq(weight, (SOFT_CAP * np.arctanh(logits / SOFT_CAP)).T, rcond=None)[0]
    squares = (inputs**2).sum(axis=1)
    expected = (1 - LOOKUP_SHARE) * squares + LOOKUP_SHARE * squares.mean()
    entry = read_importance(result.path).entries[TIED]
    assert entry.counts[0] == 128
    assert np.linalg.norm(entry.sums[0] - expected) < 1e-2 * np.linalg.norm(expected)
