"""The encoder of a tensor with second moments: when it uses feedback, what it reports, what its bytes depend on."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from moments_files import MadeUpInputs, correlated, write_moments

from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import MomentsError
from gemma4_quant.feedback import factors
from gemma4_quant.feedback.encoder import FeedbackEncoder
from gemma4_quant.feedback.factors import FactorCache, Inputs, factor_bytes
from gemma4_quant.feedback.plan import moments_of, plan_feedback
from gemma4_quant.ggml import GgmlType
from gemma4_quant.model import ArrayRows, Model, Tensor

NAME = "blk.0.ffn_down.weight"
N_IN, N_ROWS = 256, 160


def weights(n_matrices=1, n_in=N_IN, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n_matrices * N_ROWS, n_in), np.float32) * 0.03
    shape = (n_matrices, N_ROWS, n_in) if n_matrices > 1 else (N_ROWS, n_in)
    return rows, Tensor(NAME, shape, GgmlType.F32, ArrayRows(lambda: rows.view(np.uint8)))


def encoder_for(tensor, moments, kind=GgmlType.Q4_K, **inputs):
    return FeedbackEncoder(tensor, kind, Inputs(moments, tensor.n_cols, **inputs), FactorCache())


def output_error(kind, data, rows, vectors):
    """Return the mean squared change of the outputs, summed over the rows: the closed form of what is reported."""
    change = codec_for(kind).decode(data, rows.shape[1]).astype(np.float64) - rows
    return np.square(change @ vectors.astype(np.float64).T).sum() / len(vectors)


def test_outputs_come_closer_on_text_that_was_not_calibrated_with(tmp_path):
    rows, tensor = weights()
    held_out, fresh = correlated(64, N_IN, 1), correlated(2000, N_IN, 2)
    file = write_moments(tmp_path / "m.gguf", {NAME: MadeUpInputs([correlated(2000, N_IN, 0)], [held_out])})
    encoder = encoder_for(tensor, file[NAME])
    importance = file[NAME].mean_square(0)
    with_feedback = encoder.encode(rows, importance, Effort.BALANCED)
    without = codec_for(GgmlType.Q4_K).encode(rows, importance, Effort.BALANCED)
    assert with_feedback.shape == without.shape
    ratio = output_error(GgmlType.Q4_K, with_feedback, rows, fresh) / output_error(
        GgmlType.Q4_K, without, rows, fresh
    )
    assert ratio < 0.6
    summary = encoder.summary()
    assert summary.ratio == pytest.approx(ratio, abs=0.05)
    assert summary.held_out_ratio == pytest.approx(ratio, abs=0.1)
    assert (summary.n_fallbacks, summary.n_few) == (0, 0)


def test_the_errors_reported_are_those_of_the_calibration_text(tmp_path):
    rows, tensor = weights()
    vectors = correlated(2000, N_IN, 0)
    file = write_moments(tmp_path / "m.gguf", {NAME: MadeUpInputs([vectors], [correlated(64, N_IN, 1)])})
    encoder = encoder_for(tensor, file[NAME])
    data = encoder.encode(rows, file[NAME].mean_square(0), Effort.BALANCED)
    summary = encoder.summary()
    assert summary.error_after == pytest.approx(output_error(GgmlType.Q4_K, data, rows, vectors), rel=1e-3)
    plain = codec_for(GgmlType.Q4_K).encode(rows, file[NAME].mean_square(0), Effort.BALANCED)
    # What it would have been without feedback is estimated from a few of the rows.
    assert summary.error_before == pytest.approx(output_error(GgmlType.Q4_K, plain, rows, vectors), rel=0.1)


def test_a_fit_that_does_not_hold_on_held_out_inputs_is_not_used(tmp_path):
    """Held-out inputs are of another kind than the summed ones: what is gained on these is lost on those."""
    rows, tensor = weights()
    summed = correlated(300, N_IN, 0)
    strange = np.random.default_rng(5).standard_normal((64, N_IN), np.float32)
    strange -= strange @ np.linalg.pinv(summed[:40]) @ summed[:40]
    file = write_moments(tmp_path / "m.gguf", {NAME: MadeUpInputs([summed], [strange])})
    encoder = encoder_for(tensor, file[NAME])
    importance = file[NAME].mean_square(0)
    data = encoder.encode(rows, importance, Effort.BALANCED)
    np.testing.assert_array_equal(data, codec_for(GgmlType.Q4_K).encode(rows, importance, Effort.BALANCED))
    summary = encoder.summary()
    assert (summary.n_fallbacks, summary.reasons) == (1, ("no better on held-out text",))
    assert summary.held_out_ratio == 1
    assert summary.n_few == 1  # 300 vectors for 256 columns


def test_experts_that_were_hardly_seen_are_encoded_without_feedback_and_the_others_gain(tmp_path):
    rows, tensor = weights(n_matrices=3)
    nothing = np.empty((0, N_IN), np.float32)
    inputs = MadeUpInputs(
        [correlated(2000, N_IN, 0), nothing, correlated(100, N_IN, 3)], [correlated(64, N_IN, 1), nothing, nothing]
    )
    file = write_moments(tmp_path / "m.gguf", {NAME: inputs})
    encoder = encoder_for(tensor, file[NAME])
    importance = file[NAME].mean_square(0)
    for matrix in range(3):
        own = rows[matrix * N_ROWS : (matrix + 1) * N_ROWS]
        data = encoder.encode(own, importance, Effort.BALANCED, matrix)
        plain = codec_for(GgmlType.Q4_K).encode(own, importance, Effort.BALANCED)
        assert np.array_equal(data, plain) == (matrix > 0)
    summary = encoder.summary()
    assert summary.n_fallbacks == 2
    assert set(summary.reasons) == {"no input was seen", "few inputs and none held out"}
    assert summary.n_few == 2


def test_bytes_depend_neither_on_tiles_nor_on_threads(tmp_path):
    rows, tensor = weights()
    file = write_moments(
        tmp_path / "m.gguf", {NAME: MadeUpInputs([correlated(900, N_IN, 0)], [correlated(64, N_IN, 1)])}
    )
    importance = file[NAME].mean_square(0)
    whole = encoder_for(tensor, file[NAME]).encode(rows, importance, Effort.BALANCED)
    encoder = encoder_for(tensor, file[NAME])
    parts = [rows[start : start + 48] for start in range(0, N_ROWS, 48)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda part: encoder.encode(part, importance, Effort.BALANCED), parts[::-1]))
    np.testing.assert_array_equal(np.concatenate(found[::-1]), whole)


def test_padded_columns_change_nothing_for_the_others(tmp_path):
    """192 columns of zeros more than were calibrated, as when feed-forward widths become whole super-blocks."""
    rows, tensor = weights(n_in=320)
    padded = np.pad(rows, ((0, 0), (0, 192)))
    wide = replace(tensor, shape=(N_ROWS, 512), source=ArrayRows(lambda: padded.view(np.uint8)))
    inputs = MadeUpInputs([correlated(2000, 320, 0)], [correlated(64, 320, 1)])
    file = write_moments(tmp_path / "m.gguf", {NAME: inputs})
    blocks = Inputs(file[NAME], 512).blocks(0)
    assert [block.shape for block in blocks] == [(512, 512)]
    assert not blocks[0][320:].any()
    importance = np.pad(file[NAME].mean_square(0), (0, 192))
    encoder = encoder_for(wide, file[NAME])
    data = encoder.encode(padded, importance, Effort.BALANCED)
    assert encoder.summary().ratio < 0.7
    decoded = codec_for(GgmlType.Q4_K).decode(data, 512)
    assert np.abs(decoded[:, 320:]).max() <= np.abs(rows).max() / 8


def test_lookups_count_as_equal_columns_beside_the_outputs(tmp_path):
    file = write_moments(
        tmp_path / "m.gguf", {NAME: MadeUpInputs([correlated(900, N_IN, 0)], [correlated(64, N_IN, 1)])}
    )
    alone, mixed = Inputs(file[NAME], N_IN), Inputs(file[NAME], N_IN, lookup_share=0.5)
    difference = mixed.blocks(0)[0] - alone.blocks(0)[0]
    mean = file[NAME].mean_square(0).mean()
    np.testing.assert_allclose(difference, 0.5 * mean * np.eye(N_IN), atol=1e-4 * mean)
    assert alone.identity != mixed.identity


def test_only_tensors_with_moments_and_scalar_types_are_planned(tmp_path):
    _, tensor = weights()
    file = write_moments(
        tmp_path / "m.gguf", {NAME: MadeUpInputs([correlated(900, N_IN, 0)], [correlated(64, N_IN, 1)])}
    )
    other = replace(tensor, name="blk.1.ffn_down.weight")
    for kind, planned in [(GgmlType.Q6_K, {NAME}), (GgmlType.IQ3_S, set()), (GgmlType.F32, set())]:
        assert set(plan_feedback([(tensor, kind), (other, kind)], dict(file), FactorCache())) == planned


def test_moments_of_another_model_are_refused(tmp_path):
    _, tensor = weights()
    file = write_moments(tmp_path / "m.gguf", {NAME: MadeUpInputs([correlated(90, 128, 0)], [correlated(9, 128, 1)])})
    model = Model(tmp_path, {}, [tensor])
    with pytest.raises(MomentsError, match=r"another model: blk\.0\.ffn_down\.weight"):
        moments_of(model, file)
    with pytest.raises(MomentsError, match="another model"):
        moments_of(Model(tmp_path, {}, [replace(tensor, name="elsewhere")]), file)


def test_identities_tell_moments_apart(tmp_path):
    _, tensor = weights()
    files = [
        write_moments(
            tmp_path / f"{seed}.gguf", {NAME: MadeUpInputs([correlated(90, N_IN, seed)], [correlated(9, N_IN, 1)])}
        )
        for seed in range(2)
    ]
    first, second = (encoder_for(tensor, file[NAME]) for file in files)
    assert first.identity != second.identity
    assert first.identity == encoder_for(tensor, files[0][NAME]).identity
    assert first.identity != encoder_for(tensor, files[0][NAME], kind=GgmlType.Q5_K).identity


def test_a_factor_is_made_once_for_all_threads_and_forgotten_when_memory_is_short(tmp_path, monkeypatch):
    inputs = {
        f"blk.{i}.ffn_down.weight": MadeUpInputs([correlated(90, N_IN, i)], [correlated(9, N_IN, 9)])
        for i in range(4)
    }
    file = write_moments(tmp_path / "m.gguf", inputs)
    prepare, made, started = factors.prepare_factor, [], threading.Barrier(4)

    def counting(blocks):
        made.append(1)
        return prepare(blocks)

    monkeypatch.setattr(factors, "prepare_factor", counting)
    each = [Inputs(file[name], N_IN) for name in inputs]
    size = factor_bytes(prepare(each[0].blocks(0)))
    cache = FactorCache(max_bytes=2 * size)

    def ask(_number):
        started.wait()
        return cache.factor(each[0], 0)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert len(made) == 1
    assert all(factor is found[0] for factor in found)
    for one in each:
        cache.factor(one, 0)
    assert len(made) == 4
    cache.factor(each[3], 0)
    assert len(made) == 4
    cache.factor(each[0], 0)
    assert len(made) == 5


def test_a_factor_that_cannot_be_made_is_an_error_for_all_who_ask(tmp_path):
    summed = correlated(90, N_IN, 0)
    summed[3, 5] = np.inf
    file = write_moments(tmp_path / "m.gguf", {NAME: MadeUpInputs([summed], [correlated(64, N_IN, 1)])})
    rows, tensor = weights()
    encoder = encoder_for(tensor, file[NAME])
    for _ in range(2):
        with pytest.raises(MomentsError, match="NaN or infinite"):
            encoder.encode(rows, None, Effort.BALANCED)


def test_a_thread_that_would_wait_makes_the_next_factor(tmp_path, monkeypatch):
    inputs = {
        f"blk.{i}.ffn_down.weight": MadeUpInputs([correlated(90, N_IN, i)], [correlated(9, N_IN, 9)])
        for i in range(4)
    }
    file = write_moments(tmp_path / "m.gguf", inputs)
    prepare, begun, go_on = factors.prepare_factor, [], threading.Event()

    def slow(blocks):
        begun.append(threading.get_ident())
        if len(begun) == 1:
            go_on.wait(30)
        elif len(begun) == 3:
            go_on.set()
        return prepare(blocks)

    monkeypatch.setattr(factors, "prepare_factor", slow)
    each = [Inputs(file[name], N_IN) for name in inputs]
    prepare(each[0].blocks(0))  # compiled now, or the first thread's patience would end meanwhile
    cache = FactorCache(max_bytes=3 * each[0].factor_bytes)
    for one in each:
        cache.expect(one, 1)
    with ThreadPoolExecutor(2) as pool:
        first, second = list(pool.map(lambda _number: cache.factor(each[0], 0), range(2)))
    assert first is second
    assert len(begun) == 3  # the other thread made two more, for which there was room
    assert begun[1] == begun[2] != begun[0]
    monkeypatch.setattr(factors, "prepare_factor", None)
    assert cache.factor(each[1], 0).n_in == N_IN


def test_the_size_of_a_factor_is_known_before_it_is_made(tmp_path):
    for n_in, width in [(256, 256), (640, 640), (640, 256)]:
        summed = MadeUpInputs([correlated(90, n_in, 0)], [correlated(9, n_in, 1)], width)
        file = write_moments(tmp_path / f"{n_in}-{width}.gguf", {NAME: summed})
        inputs = Inputs(file[NAME], n_in)
        size = factor_bytes(factors.prepare_factor(inputs.blocks(0)))
        assert size <= 1.05 * inputs.factor_bytes
        assert inputs.factor_bytes <= 1.5 * size
