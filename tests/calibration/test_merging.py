"""Adding up importance files: exactly, whatever the parts, and only those of one model."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.calibration.importance import Entry, Importance, read_importance, write_importance
from gemma4_quant.calibration.legacy_dat import write_legacy
from gemma4_quant.calibration.merging import merge, merge_files
from gemma4_quant.errors import ImportanceError, InputError

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHT = "blk.0.attn_q.weight"


def part(sums, counts=(512.0,), *, name=WEIGHT, text="a.txt", n_chunks=1, size=512) -> Importance:
    entry = Entry(np.array(sums, np.float64), np.array(counts, np.float64))
    return Importance({name: entry}, (text,), n_chunks, size)


@given(
    batches=st.lists(st.lists(st.floats(2**-10, 2**10, width=32), min_size=3, max_size=3), min_size=2, max_size=30),
    data=st.data(),
)
def test_parts_add_up_to_the_very_sums_of_one_run(tmp_path_factory, batches, data):
    """As the accumulator does: each batch gives float32 sums, and those are added in float64."""
    folder = tmp_path_factory.mktemp("parts")
    at = sorted({0, len(batches), *data.draw(st.lists(st.integers(1, len(batches) - 1), max_size=3))})
    paths = []
    for i, (start, stop) in enumerate(itertools.pairwise(at)):
        total = np.zeros(3)
        for batch in batches[start:stop]:
            total += np.float32(batch)
        paths.append(folder / f"{i}.gguf")
        write_importance(paths[-1], part([total], [float(stop - start)], n_chunks=stop - start))
    whole = np.zeros(3)
    for batch in batches:
        whole += np.float32(batch)
    for order in (paths, paths[::-1]):
        merged = merge_files(order)
        np.testing.assert_array_equal(merged.entries[WEIGHT].sums, [whole])
        assert (merged.chunk_count, merged.entries[WEIGHT].counts[0]) == (len(batches), len(batches))


def test_halves_of_a_real_file_add_up():
    whole = read_importance(GOLDEN / "imatrix-moe.gguf")
    rng = np.random.default_rng(0)
    halves = ({}, {})
    for name, entry in whole.entries.items():
        share = rng.integers(0, 2**10, entry.sums.shape) / 2**10
        counts = rng.integers(0, entry.counts.astype(int) + 1)
        halves[0][name] = Entry(entry.sums * share, counts)
        halves[1][name] = Entry(entry.sums - halves[0][name].sums, entry.counts - counts)
    merged = merge([(str(i), Importance(half, (), 3, 128)) for i, half in enumerate(halves)])
    for name, entry in whole.entries.items():
        np.testing.assert_allclose(merged.entries[name].sums, entry.sums, rtol=1e-12)
        np.testing.assert_array_equal(merged.entries[name].counts, entry.counts)


def test_texts_are_named_once_and_chunks_of_one_size_add_up():
    merged = merge([("a", part([[1, 2]])), ("b", part([[3, 4]], n_chunks=4)), ("c", part([[5, 6]], text="c.txt"))])
    assert (merged.datasets, merged.chunk_count, merged.chunk_size) == (("a.txt", "c.txt"), 6, 512)


def test_chunks_of_several_sizes_count_by_the_first():
    merged = merge([("a", part([[1, 2]], [512.0])), ("b", part([[3, 4]], [640.0], size=128, n_chunks=5))])
    assert (merged.chunk_count, merged.chunk_size) == ((512 + 640) // 512, 512)


def test_weights_that_one_part_lacks_keep_what_the_others_say():
    merged = merge([("a", part([[1, 2]])), ("b", part([[3, 4]], name="token_embd.weight"))])
    assert merged.names == {WEIGHT, "token_embd.weight"}


def test_an_older_file_with_one_count_adds_to_one_with_a_count_for_each_expert(tmp_path):
    experts = read_importance(GOLDEN / "imatrix-moe.gguf")
    write_legacy(tmp_path / "older.dat", experts)
    merged = merge([("new", experts), ("old", read_importance(tmp_path / "older.dat"))])
    name = "blk.0.ffn_gate_up_exps.weight"
    assert merged.entries[name].sums.shape == (8, 256)
    older = read_importance(tmp_path / "older.dat").entries[name].of_matrices(8)
    np.testing.assert_array_equal(merged.entries[name].counts, experts.entries[name].counts + older.counts)


def test_parts_of_other_models_are_refused_and_named():
    with pytest.raises(ImportanceError, match=rf"different models.*{WEIGHT} \(\(1, 3\) in b"):
        merge([("a", part([[1, 2]])), ("b", part([[1, 2, 3]]))])


def test_a_part_counts_once_and_there_must_be_one(tmp_path):
    write_importance(tmp_path / "a.gguf", part([[1, 2]]))
    (tmp_path / "link.gguf").symlink_to(tmp_path / "a.gguf")
    with pytest.raises(InputError, match="twice"):
        merge_files([tmp_path / "a.gguf", tmp_path / "link.gguf"])
    with pytest.raises(InputError, match="no importance file"):
        merge_files([])


def test_sums_that_contradict_those_in_full_are_refused(tmp_path):
    write_importance(tmp_path / "a.gguf", part([[1 + 2**-40, 2]]))
    data = (tmp_path / "a.gguf").read_bytes()
    full = np.float64(1 + 2**-40).tobytes()
    assert full in data
    np.testing.assert_array_equal(read_importance(tmp_path / "a.gguf").entries[WEIGHT].sums, [[1 + 2**-40, 2]])
    (tmp_path / "b.gguf").write_bytes(data.replace(full, np.float64(1.5).tobytes()))
    with pytest.raises(ImportanceError, match="contradicts"):
        read_importance(tmp_path / "b.gguf")
