"""llama.cpp's older importance files against one that llama-imatrix wrote (`--output-format dat`), and damage."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.calibration.importance import Entry, Importance, read_importance
from gemma4_quant.calibration.legacy_dat import CHUNK_TOKENS, read_legacy, write_legacy
from gemma4_quant.errors import ImportanceError

GOLDEN = Path(__file__).parents[1] / "golden"
EXPERTS = "blk.1.ffn_down_exps.weight"


def of(sums, counts, name=EXPERTS) -> Importance:
    entry = Entry(np.array(sums, np.float64), np.array(counts, np.float64))
    return Importance({name: entry}, ("a.txt", "b.txt"), 3, 512)


def test_an_older_file_of_llama_imatrix_says_what_its_gguf_file_says():
    older, newer = read_importance(GOLDEN / "imatrix.dat"), read_importance(GOLDEN / "imatrix.gguf")
    assert older.names == newer.names
    assert (older.chunk_count, older.chunk_size) == (newer.chunk_count, newer.chunk_size)
    for name in newer.names:
        np.testing.assert_allclose(older.mean_square(name), newer.mean_square(name), rtol=1e-6)
        np.testing.assert_array_equal(older.entries[name].counts, np.ceil(newer.entries[name].counts / 512) * 512)


def test_ours_is_written_as_llama_imatrix_writes_it(tmp_path):
    """Byte for byte but for rounding."""
    importance = read_importance(GOLDEN / "imatrix.gguf")
    write_legacy(tmp_path / "ours.dat", importance)
    ours, theirs = (tmp_path / "ours.dat").read_bytes(), (GOLDEN / "imatrix.dat").read_bytes()
    assert len(ours) == len(theirs)
    at = 4
    assert ours[:at] == theirs[:at]
    for name in sorted(importance.names):
        head = 12 + len(name)
        assert ours[at : at + head] == theirs[at : at + head]
        n_values = importance.entries[name].sums.size
        mine, original = (np.frombuffer(data, "<f4", n_values, at + head) for data in (ours, theirs))
        np.testing.assert_allclose(mine, original, rtol=1e-6)
        at += head + 4 * n_values
    assert ours[at:] == theirs[at:]


def test_an_expert_that_saw_nothing_is_written_as_the_mean_of_the_others(tmp_path):
    write_legacy(tmp_path / "imatrix.dat", of([[2, 4], [0, 0], [9, 6]], [2, 0, 3]))
    entry = read_legacy(tmp_path / "imatrix.dat").entries[EXPERTS].of_matrices(3)
    np.testing.assert_allclose(entry.sums / entry.counts[:, None], [[1, 2], [2, 2], [3, 2]])


def test_an_expert_that_llama_imatrix_wrote_as_ones_is_unseen(tmp_path):
    """Its file says 1 for every column of an expert that was never routed to."""
    values = np.array([[3.0, 5.0], [1.0, 1.0], [2.0, 8.0]], "<f4") * 7
    name = EXPERTS.encode()
    data = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 7, values.size) + values.tobytes()
    (tmp_path / "theirs.dat").write_bytes(data)
    importance = read_importance(tmp_path / "theirs.dat")
    assert (importance.chunk_count, importance.datasets) == (0, ())
    parted = Importance({EXPERTS: importance.entries[EXPERTS].of_matrices(3)}, (), 0, 512)
    assert parted.unseen(EXPERTS) == (1,)
    np.testing.assert_allclose(parted.mean_square(EXPERTS), [[3, 5], [2.5, 6.5], [2, 8]])


def test_weights_that_saw_nothing_are_left_out_and_nothing_at_all_is_refused(tmp_path):
    seen, unseen = of([[1, 2]], [4]).entries, of([[0, 0]], [0], "blk.0.attn_q.weight").entries
    write_legacy(tmp_path / "imatrix.dat", Importance({**seen, **unseen}, (), 1, 512))
    assert read_legacy(tmp_path / "imatrix.dat").names == {EXPERTS}
    with pytest.raises(ImportanceError, match="nothing to write"):
        write_legacy(tmp_path / "none.dat", Importance(unseen, (), 1, 512))


@given(sums=st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=8), count=st.integers(1, 1 << 24))
def test_what_is_written_is_read(tmp_path_factory, sums, count):
    path = tmp_path_factory.mktemp("dat") / "imatrix.dat"
    importance = of([sums], [count])
    write_legacy(path, importance)
    read = read_importance(path)
    np.testing.assert_allclose(read.mean_square(EXPERTS), importance.mean_square(EXPERTS), rtol=1e-6)
    assert read.entries[EXPERTS].counts[0] == -(-count // 512) * CHUNK_TOKENS
    assert (read.chunk_count, read.datasets) == (3, ("b.txt",))


def test_every_cut_is_refused_or_only_lacks_what_may_lack(tmp_path):
    data = (GOLDEN / "imatrix.dat").read_bytes()
    whole = read_legacy(GOLDEN / "imatrix.dat")
    cut = tmp_path / "cut.dat"
    n_trailing = 8 + len("calibration.txt")
    for n_bytes in (0, 3, 4, 7, 11, 30, 200, len(data) // 2, len(data) - n_trailing - 1, len(data) - 1):
        cut.write_bytes(data[:n_bytes])
        with pytest.raises(ImportanceError):
            read_importance(cut)
    cut.write_bytes(data[:-n_trailing])
    assert read_importance(cut).names == whole.names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<ii", 1, -5), "length of a name is -5"),
        (struct.pack("<ii", 1, 1 << 30), "length of a name"),
        (struct.pack("<ii4sii", 1, 4, b"blk.", -1, 2), "number of calls of 'blk.' is -1"),
        (struct.pack("<ii4sii", 1, 4, b"blk.", 1, 1 << 29), "ends within the values"),
        (struct.pack("<ii4siif", 1, 4, b"blk.", 1, 1, float("nan")), "NaN"),
        (struct.pack("<ii4siif", 1, 4, b"blk.", 1, 1, -1.0), "negative"),
    ],
)
def test_what_no_calibration_writes_is_refused(tmp_path, content, message):
    (tmp_path / "bad.dat").write_bytes(content)
    with pytest.raises(ImportanceError, match=message):
        read_importance(tmp_path / "bad.dat")
