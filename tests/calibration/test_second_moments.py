"""Second moments against transformers' activations and llama-imatrix's sums, merging, memory limits and resuming."""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import EXAMPLE
from moments_cases import N_CHUNKS, N_CTX, probes

from gemma4_quant.calibration import collect_moments as collecting
from gemma4_quant.calibration.collect_moments import NumberedChunks, collect_moments
from gemma4_quant.calibration.importance import read_importance
from gemma4_quant.calibration.moments import read_moments
from gemma4_quant.calibration.moments_merge import merge_moments
from gemma4_quant.errors import InputError, MomentsError, OutputError
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.text import chunk_text

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = EXAMPLE / "calibration.txt"
EXPERTS = "blk.0.ffn_gate_up_exps.weight"


@pytest.fixture(scope="module")
def example(example_f32):
    """The loaded model and the chunks of the recorded moments."""
    with LoadedModel(example_f32, n_gpu_layers=0) as model:
        yield model, chunk_text(model, TEXT, N_CTX, N_CHUNKS).tokens


@pytest.fixture(scope="module")
def whole(example, tmp_path_factory):
    """Moments of all chunks."""
    model, tokens = example
    path = tmp_path_factory.mktemp("moments") / "whole.gguf"
    return collect_moments(model, NumberedChunks(tokens), path, datasets=["text"])


def square(moments, matrix=0):
    blocks = [moments.block(matrix, i) for i in range(moments.n_blocks)]
    out = np.zeros((moments.n_in, moments.n_in))
    at = 0
    for block in blocks:
        out[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return out


def test_every_linear_has_the_moments_of_transformers_activations(whole):
    file, golden = read_moments(whole.path), np.load(GOLDEN / "moments.npz")
    assert {moments.entry for moments in file.values()} == set(golden.files)
    for name in golden.files:
        ours, theirs = square(file[name]) @ probes(file[name].n_in), golden[name]
        assert np.linalg.norm(ours - theirs) < 1e-2 * np.linalg.norm(theirs), name


def test_weights_that_share_an_input_share_storage(whole):
    file = read_moments(whole.path)
    assert {file[f"blk.0.attn_{kind}.weight"].entry for kind in "qkv"} == {"blk.0.attn_q.weight"}
    assert file["blk.2.ffn_up.weight"].entry == "blk.2.ffn_gate.weight"
    assert (whole.n_weights, whole.n_entries) == (50, 38)
    assert {"token_embd.weight", "per_layer_model_proj.weight"} <= set(file)


def test_counts_and_provenance_say_what_was_summed(whole):
    file = read_moments(whole.path)
    n_summed = (N_CHUNKS - 2) * N_CTX
    assert {int(moments.counts[0]) for moments in file.values()} == {n_summed}
    assert whole.n_tokens == file.provenance.n_summed_tokens == n_summed
    assert whole.n_held_out_tokens == 2 * N_CTX
    assert file.provenance.datasets == ("text",)


def test_the_held_out_sample_has_the_moments_of_chunks_that_are_in_no_sum(whole, example, tmp_path):
    """All 512 held-out vectors lie within the sample's reach: half of them are in it."""
    model, tokens = example
    only = collect_moments(model, NumberedChunks(tokens[[7, 15]]), tmp_path / "only.gguf", datasets=[])
    file, other = read_moments(whole.path), read_moments(only.path)
    for name in ("blk.0.attn_q.weight", "blk.5.ffn_down.weight", "token_embd.weight"):
        sample = file[name].held_out(0)
        assert len(sample) == 256
        ratio = np.square(sample).sum(axis=1).mean() / other[name].mean_square(0).sum()
        assert 0.9 < ratio < 1.1, name
        assert len(other[name].held_out(0)) == 0


def test_two_halves_add_up_to_the_whole(whole, example, tmp_path):
    model, tokens = example
    halves = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for path, part in zip(halves, [NumberedChunks(tokens[:8]), NumberedChunks(tokens[8:], 8)], strict=True):
        collect_moments(model, part, path, datasets=[path.name])
    provenance = merge_moments(halves, tmp_path / "both.gguf")
    both, one = read_moments(tmp_path / "both.gguf"), read_moments(whole.path)
    assert both.provenance == provenance
    assert provenance.datasets == ("a.gguf", "b.gguf")
    assert provenance.chunk_count == N_CHUNKS
    for name in one:
        np.testing.assert_array_equal(both[name].counts, one[name].counts)
        ours, theirs = square(both[name]), square(one[name])
        assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs), name
        np.testing.assert_array_equal(both[name].held_out_bits(0)[0], one[name].held_out_bits(0)[0])


def test_little_memory_gives_blocks_of_the_full_matrix_in_several_passes(example, tmp_path):
    model, tokens = example
    few, limit = NumberedChunks(tokens[:2]), 6_000_000
    all_at_once = collect_moments(model, few, tmp_path / "full.gguf", datasets=[])
    result = collect_moments(model, few, tmp_path / "small.gguf", datasets=[], memory_bytes=limit)
    assert result.memory_bytes <= limit
    assert (all_at_once.n_passes, result.n_passes) == (1, 4)
    full, small = read_moments(all_at_once.path), read_moments(result.path)
    assert {name for name in small if small[name].n_blocks > 1} == {name for name in full if full[name].n_in > 256}
    for name in full:
        expected = square(full[name])
        for i in range(small[name].n_blocks):
            part = slice(256 * i, 256 * i + 256)
            block = small[name].block(0, i)
            wanted = expected[part, part]
            assert np.linalg.norm(block - wanted) < 1e-4 * np.linalg.norm(wanted), name


def test_memory_that_does_not_suffice_for_one_weight_is_an_error(example, tmp_path):
    model, tokens = example
    with pytest.raises(InputError, match=r"blk\.0\.attn_q.* --hessian-memory"):
        collect_moments(model, NumberedChunks(tokens), tmp_path / "m.gguf", datasets=[], memory_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_every_expert_has_the_sums_of_llama_imatrix(moe_bf16, tmp_path):
    """The recording has six chunks, none of which is held out; other batches send tokens on the edge elsewhere."""
    with LoadedModel(moe_bf16, n_gpu_layers=0) as model:
        chunks = NumberedChunks(chunk_text(model, TEXT, 128, 6).tokens)
        collect_moments(model, chunks, tmp_path / "moe.gguf", datasets=[])
    ours, theirs = read_moments(tmp_path / "moe.gguf").importance(), read_importance(GOLDEN / "imatrix-moe.gguf")
    shared = theirs.names & ours.names
    assert theirs.names - ours.names == {f"blk.{i}.ffn_gate_inp.weight" for i in range(6)}
    for name in shared:
        ours_of, theirs_of = ours.entries[name], theirs.entries[name]
        sums, wanted = ours_of.sums, theirs_of.sums
        if "_exps" in name and not name.startswith("blk.0."):
            # Rounding differs with the batch; from the second layer on it sends more and more tokens elsewhere.
            assert ours_of.counts.sum() == theirs_of.counts.sum()
            sums, wanted = sums.sum(axis=0, keepdims=True), wanted.sum(axis=0, keepdims=True)
        else:
            np.testing.assert_allclose(ours_of.counts, theirs_of.counts, atol=2)
        tolerance = 1e-3 if name.startswith("blk.0.attn") else 5e-2
        assert (np.linalg.norm(sums - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max() < tolerance, name


def test_experts_moments_are_symmetric_with_their_diagonal(moe_bf16, tmp_path):
    with LoadedModel(moe_bf16, n_gpu_layers=0) as model:
        chunks = NumberedChunks(chunk_text(model, TEXT, 128, 9).tokens)
        collect_moments(model, chunks, tmp_path / "moe.gguf", datasets=[])
    moments = read_moments(tmp_path / "moe.gguf")[EXPERTS]
    assert moments.n_matrices == 8
    assert moments.counts.sum() == 8 * 128 * 2  # two experts a token, one of nine chunks held out
    for expert in range(8):
        block = moments.block(expert, 0)
        np.testing.assert_array_equal(block, block.T)
        np.testing.assert_allclose(block.diagonal(), moments.mean_square(expert))
        assert np.linalg.eigvalsh(block.astype(np.float64))[0] > -1e-3 * np.trace(block)
        assert len(moments.held_out(expert)) <= 32
    assert sum(len(moments.held_out(expert)) for expert in range(8)) > 100


def test_an_interrupted_run_goes_on_with_the_pass_it_was_in(example, tmp_path, monkeypatch):
    model, tokens = example
    few = NumberedChunks(tokens[:3])
    evaluated, calls = collecting._evaluated, []

    def failing(*arguments):
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluated(*arguments)

    monkeypatch.setattr(collecting, "_evaluated", failing)
    options = {"datasets": [], "memory_bytes": 8_000_000}
    with pytest.raises(KeyboardInterrupt):
        collect_moments(model, few, tmp_path / "m.gguf", **options)
    assert not (tmp_path / "m.gguf").exists()
    result = collect_moments(model, few, tmp_path / "m.gguf", **options)
    assert result.n_passes == len(calls) - 1  # the pass that was interrupted ran twice
    collect_moments(model, few, tmp_path / "again.gguf", **options)
    assert (tmp_path / "again.gguf").read_bytes() == result.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.gguf", "m.gguf"]


def test_what_is_no_file_of_moments_or_of_another_kind_is_refused(whole, example, tmp_path):
    model, tokens = example
    with pytest.raises(MomentsError, match="without second moments"):
        read_moments(GOLDEN / "imatrix.gguf")
    other = collect_moments(
        model, NumberedChunks(tokens[:2]), tmp_path / "o.gguf", datasets=[], memory_bytes=6_000_000
    )
    with pytest.raises(MomentsError, match=r"different things of blk\.\d\.ffn_down"):
        merge_moments([whole.path, other.path], tmp_path / "both.gguf")
    with pytest.raises(OutputError, match="would overwrite"):
        merge_moments([whole.path, whole.path], whole.path)
    with pytest.raises(InputError, match="no chunk"):
        collect_moments(model, NumberedChunks(tokens[:0]), tmp_path / "m.gguf", datasets=[])
