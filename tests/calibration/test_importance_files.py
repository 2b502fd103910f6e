"""Importance files against llama-imatrix's own, the gguf package's reader, and damage."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from gemma4_quant.calibration.importance import Entry, Importance, read_importance, write_importance
from gemma4_quant.errors import ImportanceError, InputError, OutputError

GOLDEN = Path(__file__).parents[1] / "golden"


def small(sums=((1.0, 2.0), (3.0, 4.0)), counts=(2.0, 1.0)) -> Importance:
    entry = Entry(np.array(sums, np.float32), np.array(counts, np.float32))
    return Importance({"blk.1.ffn_down_exps.weight": entry}, ("a.txt", "b.txt"), 3, 512)


@pytest.mark.parametrize("name", ["imatrix.gguf", "imatrix-moe.gguf"])
def test_llama_imatrix_files_are_read_and_written_back_alike(tmp_path, name):
    importance = read_importance(GOLDEN / name)
    write_importance(tmp_path / "again.gguf", importance)
    ours, theirs = gguf.GGUFReader(tmp_path / "again.gguf"), gguf.GGUFReader(GOLDEN / name)
    assert [tensor.name for tensor in ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for mine, original in zip(ours.tensors, theirs.tensors, strict=True):
        assert list(mine.shape) == list(original.shape)
        np.testing.assert_array_equal(mine.data, original.data)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert ours.fields[key].contents() == field.contents()
            assert ours.fields[key].types == field.types


def test_facts_of_a_llama_imatrix_file_are_understood():
    importance = read_importance(GOLDEN / "imatrix-moe.gguf")
    assert (importance.chunk_count, importance.chunk_size, importance.datasets) == (6, 128, ("calibration.txt",))
    experts = importance.entries["blk.0.ffn_gate_up_exps.weight"]
    assert experts.sums.shape == (8, 256)
    assert experts.counts.sum() == 6 * 128 * 2
    assert importance.entries["blk.0.attn_q.weight"].sums.shape == (1, 256)
    assert importance.unseen("blk.0.ffn_gate_up_exps.weight") == ()


def test_mean_square_divides_each_matrix_by_its_count():
    np.testing.assert_array_equal(small().mean_square("blk.1.ffn_down_exps.weight"), [[0.5, 1.0], [3.0, 4.0]])


def test_an_expert_that_saw_nothing_borrows_the_mean_of_those_that_did():
    importance = small(sums=((2.0, 4.0), (0.0, 0.0), (9.0, 6.0)), counts=(2.0, 0.0, 3.0))
    expected = [[1.0, 2.0], [2.0, 2.0], [3.0, 2.0]]
    np.testing.assert_array_equal(importance.mean_square("blk.1.ffn_down_exps.weight"), expected)
    assert importance.unseen("blk.1.ffn_down_exps.weight") == (1,)


def test_statistics_that_do_not_exist_are_not_invented():
    with pytest.raises(ImportanceError, match=r"nothing of blk\.0"):
        small().mean_square("blk.0.attn_q.weight")
    with pytest.raises(ImportanceError, match="calibrate with more text"):
        small(counts=(0.0, 0.0)).mean_square("blk.1.ffn_down_exps.weight")


def test_sums_that_float32_does_not_hold_are_stored_in_full_beside_it(tmp_path):
    sums = np.array([[1 + 2**-40, 2], [3, 4]])
    importance = Importance({"blk.1.ffn_down_exps.weight": Entry(sums, np.array([2.0, 1]))}, (), 3, 512)
    write_importance(tmp_path / "full.gguf", importance)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "full.gguf").tensors}
    assert set(tensors) == {f"blk.1.ffn_down_exps.weight.{part}" for part in ("in_sum2", "counts", "in_sum2_f64")}
    rounded, full = (tensors[f"blk.1.ffn_down_exps.weight.{part}"] for part in ("in_sum2", "in_sum2_f64"))
    assert (rounded.tensor_type, full.tensor_type) == (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F64)
    np.testing.assert_array_equal(rounded.data, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(full.data, sums)
    np.testing.assert_array_equal(read_importance(tmp_path / "full.gguf").entries[rounded.name[:-8]].sums, sums)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_values_that_no_calibration_gives_are_refused(tmp_path, bad):
    with pytest.raises(ImportanceError, match="ffn_down_exps"):
        write_importance(tmp_path / "bad.gguf", small(sums=((1.0, bad), (3.0, 4.0))))
    write_importance(tmp_path / "good.gguf", small())
    data = (tmp_path / "good.gguf").read_bytes()
    damaged = data.replace(np.float32(2.0).tobytes() + np.float32(3.0).tobytes(), np.float32([bad, 3.0]).tobytes())
    assert damaged != data
    (tmp_path / "bad.gguf").write_bytes(damaged)
    with pytest.raises(ImportanceError, match="ffn_down_exps"):
        read_importance(tmp_path / "bad.gguf")


def test_other_files_are_refused(tmp_path, example_bf16):
    with pytest.raises(InputError, match="nowhere"):
        read_importance(tmp_path / "nowhere.gguf")
    (tmp_path / "text.gguf").write_text("once upon a time")
    with pytest.raises(ImportanceError, match="not a GGUF file"):
        read_importance(tmp_path / "text.gguf")
    with pytest.raises(ImportanceError, match="not an importance file"):
        read_importance(example_bf16)


def test_every_cut_and_half_an_entry_are_refused(tmp_path):
    write_importance(tmp_path / "good.gguf", small())
    data = (tmp_path / "good.gguf").read_bytes()
    for n_bytes in range(0, len(data) - 32, 7):
        (tmp_path / "cut.gguf").write_bytes(data[:n_bytes])
        with pytest.raises(ImportanceError):
            read_importance(tmp_path / "cut.gguf")
    (tmp_path / "half.gguf").write_bytes(data.replace(b".counts", b".others"))
    with pytest.raises(ImportanceError, match="no complete statistics for"):
        read_importance(tmp_path / "half.gguf")


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder"):
        write_importance(tmp_path / "folder", small())
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
