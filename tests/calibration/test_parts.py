"""Calibrations in parts and in pieces: merged, killed and taken up, copied on the way; always with the same sums."""

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import EXAMPLE

from gemma4_quant.calibration import CalibrationOptions, calibrate, merge_importance, resume
from gemma4_quant.calibration.importance import Entry, read_importance
from gemma4_quant.calibration.resume import ResumeFile, resume_file_of
from gemma4_quant.errors import InputError, OutputError
from gemma4_quant.progress import SilentProgress

TEXT = EXAMPLE / "calibration.txt"
OPTIONS = CalibrationOptions(n_ctx=128, n_chunks=22, n_threads=1)


class Interrupting(SilentProgress):
    """Progress that ends the run after so many chunks."""

    def __init__(self, n_chunks: int) -> None:
        self.left = n_chunks

    def advance(self, n: int) -> None:
        self.left -= n
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A text of 22 chunks and a little more."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT.read_text(encoding="utf-8")[:7500], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(example_bf16, text, tmp_path_factory):
    """The statistics of one run over the text."""
    output = tmp_path_factory.mktemp("whole") / "whole.gguf"
    result = calibrate(example_bf16, [text], output=output, options=OPTIONS)
    assert result.n_chunks == 22
    return read_importance(output)


def assert_same(ours, theirs):
    assert ours.names == theirs.names
    assert (ours.chunk_count, ours.chunk_size) == (theirs.chunk_count, theirs.chunk_size)
    for name, entry in theirs.entries.items():
        np.testing.assert_array_equal(ours.entries[name].counts, entry.counts)
        np.testing.assert_array_equal(np.float32(ours.entries[name].sums), np.float32(entry.sums))


@pytest.mark.parametrize("cuts", [(0, 16, 22), (0, 3, 10, 11, 22)])
def test_parts_add_up_to_the_whole_wherever_it_is_cut(example_bf16, text, whole, tmp_path, cuts):
    """Sixteen chunks are evaluated side by side, so one of the splits goes through such a batch several times."""
    paths = []
    for start, stop in itertools.pairwise(cuts):
        paths.append(tmp_path / f"{start}.gguf")
        part = replace(OPTIONS, first_chunk=start, n_chunks=stop - start)
        assert calibrate(example_bf16, [text], output=paths[-1], options=part).n_chunks == stop - start
    result = merge_importance(paths, tmp_path / "merged.gguf")
    assert (result.n_chunks, result.n_ctx, result.n_tensors) == (22, 128, len(whole.names))
    assert_same(read_importance(result.path), whole)


def test_earlier_files_are_added_to_a_run(example_bf16, text, whole, tmp_path):
    calibrate(example_bf16, [text], output=tmp_path / "a.gguf", options=replace(OPTIONS, n_chunks=16))
    options = replace(OPTIONS, first_chunk=16, n_chunks=6, earlier=[tmp_path / "a.gguf"])
    calibrate(example_bf16, [text], output=tmp_path / "b.gguf", options=options)
    assert_same(read_importance(tmp_path / "b.gguf"), whole)


def test_an_interrupted_run_is_taken_up(example_bf16, text, whole, tmp_path, caplog):
    output = tmp_path / "imatrix.gguf"
    with pytest.raises(KeyboardInterrupt):
        calibrate(example_bf16, [text], output=output, options=OPTIONS, progress=Interrupting(16))
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.gguf.resume"]
    assert f"16 chunks are kept in {resume_file_of(output)}; the same command goes on" in caplog.text
    result = calibrate(example_bf16, [text], output=output, options=OPTIONS)
    assert (result.n_resumed_chunks, result.n_chunks) == (16, 22)
    assert_same(read_importance(output), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.gguf"]


def test_a_killed_run_loses_no_more_than_its_last_batch(example_bf16, text, whole, tmp_path):
    output = tmp_path / "imatrix.gguf"
    script = (
        "import sys; from pathlib import Path; from gemma4_quant.calibration import resume, CalibrationOptions, "
        "calibrate; resume.SAVE_INTERVAL_S = 0.0; model, text, output = map(Path, sys.argv[1:]); "
        "calibrate(model, [text], output=output, options=CalibrationOptions(n_ctx=128, n_chunks=22, n_threads=1))"
    )
    arguments = [sys.executable, "-c", script, str(example_bf16), str(text), str(output)]
    process = subprocess.Popen(arguments, env=os.environ)
    deadline = time.monotonic() + 120
    while not resume_file_of(output).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = calibrate(example_bf16, [text], output=output, options=OPTIONS)
    assert result.n_resumed_chunks in {0, 16, 22}  # 0 when it had finished before it was killed
    assert_same(read_importance(output), whole)
    assert not resume_file_of(output).exists()


def test_what_another_run_left_is_not_taken_up(example_bf16, text, whole, tmp_path, caplog):
    output = tmp_path / "imatrix.gguf"
    other = replace(OPTIONS, process_output=False)
    with pytest.raises(KeyboardInterrupt):
        calibrate(example_bf16, [text], output=output, options=other, progress=Interrupting(16))
    result = calibrate(example_bf16, [text], output=output, options=OPTIONS)
    assert "is of another model, text or options" in caplog.text
    assert result.n_resumed_chunks == 0
    assert_same(read_importance(output), whole)


def test_damaged_states_are_not_taken_up(tmp_path, caplog):
    output = tmp_path / "imatrix.gguf"
    entries = {"blk.0.attn_q.weight": Entry(np.array([[1.0, 2**-30 + 1]]), np.array([512.0]))}
    ResumeFile(output, "digest").save(entries, 7)
    taken_up = ResumeFile(output, "digest").load()
    assert taken_up is not None
    assert taken_up.n_chunks == 7
    np.testing.assert_array_equal(taken_up.entries["blk.0.attn_q.weight"].sums, [[1.0, 2**-30 + 1]])
    data = resume_file_of(output).read_bytes()
    for n_bytes in range(0, len(data) - 32, 41):
        resume_file_of(output).write_bytes(data[:n_bytes])
        assert ResumeFile(output, "digest").load() is None
    assert "cannot be taken up" in caplog.text


def test_a_full_disk_ends_no_run_before_its_end(example_bf16, text, whole, tmp_path, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OutputError("cannot write: No space left on device")

    monkeypatch.setattr(resume, "write_importance", full)
    monkeypatch.setattr(resume, "SAVE_INTERVAL_S", 0.0)
    calibrate(example_bf16, [text], output=tmp_path / "imatrix.gguf", options=OPTIONS)
    assert caplog.text.count("No space left on device") == 1
    assert_same(read_importance(tmp_path / "imatrix.gguf"), whole)


def test_a_result_that_cannot_be_written_leaves_what_was_saved(example_bf16, text, tmp_path, monkeypatch):
    """As when the disk is full: the next run has the work of this one."""
    output = tmp_path / "imatrix.gguf"
    monkeypatch.setattr(resume, "SAVE_INTERVAL_S", 0.0)

    class Blocking(SilentProgress):
        def finish(self) -> None:
            output.mkdir(exist_ok=True)

    with pytest.raises(OutputError, match=r"imatrix\.gguf"):
        calibrate(example_bf16, [text], output=output, options=OPTIONS, progress=Blocking())
    output.rmdir()
    assert calibrate(example_bf16, [text], output=output, options=OPTIONS).n_resumed_chunks == 22


def test_copies_are_kept_as_often_as_asked(example_bf16, text, tmp_path):
    options = replace(OPTIONS, n_ctx=512, n_chunks=5, save_every=2)
    calibrate(example_bf16, [text], output=tmp_path / "imatrix.gguf", options=options)
    copies = sorted(path.name for path in tmp_path.iterdir())
    assert copies == ["imatrix.gguf", "imatrix.gguf.at_4"]  # four chunks are evaluated side by side
    assert read_importance(tmp_path / "imatrix.gguf.at_4").chunk_count == 4


def test_a_part_beyond_the_end_is_refused(example_bf16, text, tmp_path):
    options = replace(OPTIONS, first_chunk=4000)
    with pytest.raises(InputError, match=r"there are \d+ chunks, so none is left from chunk 4000 on"):
        calibrate(example_bf16, [text], output=tmp_path / "imatrix.gguf", options=options)
