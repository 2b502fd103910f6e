"""Calibrating with text of the model's own: kept beside the matrix, reused, and read again like any other."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import EXAMPLE

from gemma4_quant.calibration import CalibrationOptions, TextSource, calibrate
from gemma4_quant.calibration.collect import self_text_of
from gemma4_quant.calibration.importance import read_importance
from gemma4_quant.texts.framing import Framing

OPTIONS = CalibrationOptions(n_ctx=64, n_self_tokens=400, seed=3, n_threads=1)


@pytest.fixture(scope="module")
def written(example_bf16, tmp_path_factory):
    """A calibration with 400 tokens of the example's own."""
    output = tmp_path_factory.mktemp("self") / "imatrix.gguf"
    return calibrate(example_bf16, output=output, options=OPTIONS)


def same_sums(first, second):
    ours, theirs = read_importance(first), read_importance(second)
    assert ours.names == theirs.names
    return all(np.array_equal(ours.entries[name].sums, theirs.entries[name].sums) for name in ours.names)


def test_the_text_is_kept_beside_the_matrix_and_named_in_it(written):
    assert written.self_text == self_text_of(written.path)
    assert written.self_text.is_file()
    assert written.datasets == (str(written.self_text),)
    assert written.framings == (Framing.TURN,)
    assert written.n_tokens >= 300


def test_a_second_run_reads_what_the_first_one_wrote(example_bf16, written, tmp_path):
    before = written.self_text.stat().st_mtime_ns
    copy = written.path.with_name("copy.gguf")
    copy.write_bytes(written.path.read_bytes())
    calibrate(example_bf16, output=written.path, options=OPTIONS)
    assert written.self_text.stat().st_mtime_ns == before
    assert same_sums(written.path, copy)
    # Given as a text, it is cut into the same chunks.
    reread = calibrate(
        example_bf16,
        [written.self_text],
        output=tmp_path / "reread.gguf",
        options=replace(OPTIONS, n_self_tokens=0),
    )
    assert reread.n_chunks == written.n_chunks
    assert same_sums(reread.path, written.path)


def test_texts_of_the_users_may_stand_beside_it(example_bf16, written, tmp_path):
    for path in (written.path, written.self_text):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    options = replace(OPTIONS, n_chunks=8)
    result = calibrate(
        example_bf16, [TextSource(EXAMPLE / "calibration.txt")], output=tmp_path / "imatrix.gguf", options=options
    )
    assert set(result.framings) == {Framing.RAW, Framing.TURN}
    assert result.datasets == (str(EXAMPLE / "calibration.txt"), str(tmp_path / "imatrix.self.jsonl"))
