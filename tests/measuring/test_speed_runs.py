"""Speed tests: what is refused before it starts, what a run tells, and that depth and threads change no result."""

import subprocess
import sys
from statistics import mean, stdev

import numpy as np
import pytest

from gemma4_quant.errors import InputError
from gemma4_quant.measuring.memory import MemoryWatch, resident_bytes
from gemma4_quant.measuring.speed import speed_of
from gemma4_quant.measuring.speed_plan import SpeedPlan, SpeedSettings, SpeedTest
from gemma4_quant.measuring.speed_runs import llama_build, measure_speeds
from gemma4_quant.progress import SilentProgress
from gemma4_quant.runner.devices import devices
from gemma4_quant.runner.session import Session, SessionOptions
from gemma4_quant.runner.thread_pool import ThreadPool
from gemma4_quant.runner.weights import LoadedModel

CACHE_BYTES = 2 * 128 * 2 * 4000
"""Least that 4,000 positions take in the example's cache: keys and values, 128 wide, in F16, of one global layer."""


class CountingProgress(SilentProgress):
    """Counts steps against what was announced."""

    def __init__(self):
        self.total = self.done = 0

    def start(self, _label, total, _unit):
        self.total += total

    def advance(self, n):
        self.done += n


@pytest.mark.parametrize(
    "plan",
    [
        SpeedPlan(n_prompt=(4097,)),
        SpeedPlan(n_generate=(1 << 40,)),
        SpeedPlan(depths=(4096,)),
        SpeedPlan(combined=((2048, 2049),)),
        SpeedPlan(n_prompt=(-1,)),
        SpeedPlan(repetitions=0),
        SpeedPlan(n_batch=(0,)),
        SpeedPlan(delay_s=float("nan")),
        SpeedPlan(devices=(("no such device",),)),
        SpeedPlan(devices=(("CPU",),)),
        SpeedPlan(n_prompt=tuple(range(1, 200)), n_batch=tuple(range(1, 200))),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_loaded(example_bf16, plan):
    progress = CountingProgress()
    with pytest.raises(InputError):
        measure_speeds(example_bf16, plan, progress)
    assert progress.total == 0


def test_a_run_tells_what_was_run_and_how_fast(example_bf16):
    plan = SpeedPlan(n_prompt=(16,), n_generate=(2,), depths=(0, 8), n_threads=(1,), repetitions=3)
    progress = CountingProgress()
    found = measure_speeds(example_bf16, plan, progress)
    assert [speed.test for speed in found.speeds] == ["pp16", "tg2", "pp16 @ d8", "tg2 @ d8"]
    assert progress.done == progress.total == 4 * 4
    for speed in found.speeds:
        assert len(speed.samples_ns) == 3
        assert min(speed.samples_ns) > 0
        assert speed.tokens_per_second == mean(speed.counts.n_timed * 1e9 / ns for ns in speed.samples_ns)
        assert speed.settings == SpeedSettings(n_threads=1)
    assert found.build == llama_build()


def test_a_first_run_is_left_out_unless_it_is_to_count(example_bf16):
    progress = CountingProgress()
    plan = SpeedPlan(n_prompt=(4,), n_generate=(0,), n_threads=(1,), repetitions=2, warm_up=False)
    assert len(measure_speeds(example_bf16, plan, progress).speeds[0].samples_ns) == 2
    assert progress.total == 2


PEAK_OF_A_RUN = """
import sys
from pathlib import Path

from gemma4_quant.measuring.speed_plan import SpeedPlan
from gemma4_quant.measuring.speed_runs import measure_speeds
from gemma4_quant.progress import SilentProgress

plan = SpeedPlan(n_prompt=(4,), n_generate=(0,), depths=(int(sys.argv[2]),), n_threads=(1,), repetitions=1)
print(measure_speeds(Path(sys.argv[1]), plan, SilentProgress()).speeds[0].peak_bytes)
"""


def peak_of_a_run(model, depth):
    command = [sys.executable, "-c", PEAK_OF_A_RUN, str(model), str(depth)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(resident_bytes() is None, reason="this system does not tell how much memory a process holds")
def test_memory_of_a_run_holds_model_and_cache(example_bf16):
    # In processes of their own: in this one, runs before have freed memory that the system still counts.
    short, long = (peak_of_a_run(example_bf16, depth) for depth in (0, 4000))
    size = example_bf16.stat().st_size
    # A little of what a run takes comes from memory that other work has freed.
    assert 0.9 * size < short < size + (100 << 20)
    assert long > short + CACHE_BYTES


@pytest.mark.skipif(resident_bytes() is None, reason="this system does not tell how much memory a process holds")
def test_the_most_memory_is_noted_and_forgotten():
    watch = MemoryWatch()
    block = np.ones(8 << 20)
    watch.look()
    del block
    assert 64 << 20 <= watch.peak_bytes() < 80 << 20
    watch.restart()
    assert watch.peak_bytes() < 32 << 20


def test_drift_is_the_share_that_the_slowest_repetition_loses():
    steady = speed_of(SpeedTest(100), SpeedSettings(), (1000, 1050, 1100), started="")
    assert steady.drift == pytest.approx(1 - 1000 / 1100)
    assert not steady.has_drifted
    assert steady.deviation == pytest.approx(stdev([1e8, 1e11 / 1050, 1e11 / 1100]))
    slowing = speed_of(SpeedTest(100), SpeedSettings(), (1000, 1050, 1112), started="")
    assert slowing.has_drifted
    single = speed_of(SpeedTest(0, 1), SpeedSettings(), (1000,), started="")
    assert (single.deviation, single.drift, single.test) == (0, 0, "tg1")


def test_a_restored_state_continues_as_the_text_itself(example_bf16):
    tokens = np.random.default_rng(0).integers(5, 2000, (1, 120), np.int32)
    options = SessionOptions(n_ctx=120, n_outputs=20, n_threads=1)
    with LoadedModel(example_bf16) as model:
        with Session(model, options) as session:
            session.decode(tokens[:, :100], 0, slice(100, None))
            state = session.saved_state()
            expected = session.decode(tokens[:, 100:], 100, slice(None)).copy()
        with ThreadPool(2) as pool, Session(model, options) as session:
            session.use_threads(pool)
            assert session.restore_state(state)
            found = session.decode(tokens[:, 100:], 100, slice(None)).copy()
            session.clear()
            assert not session.restore_state(state[:10])
            assert not session.restore_state(state[:0])
            fresh = session.decode(tokens[:, 100:], 0, slice(None)).copy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2)
    assert np.abs(fresh - expected).max() > 1


def test_the_build_names_the_processor():
    build = llama_build()
    assert next(device for device in devices() if device.is_cpu).description in build.cpu
    assert build.backends
    assert build.commit
