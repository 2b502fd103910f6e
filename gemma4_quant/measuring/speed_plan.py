"""Which speed tests to run, and under which settings: llama-bench's tests, their names, and their order.

Lists multiply: each value of a setting is combined with each of the others, and under each combination every test is
run (llama-bench.cpp, get_cmd_params_instances).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from gemma4_quant.errors import InputError
from gemma4_quant.ggml import GgmlType

MAX_TOKENS = 1 << 20
"""Most tokens of a test; four times the context of any Gemma 4."""

_MAX_RUNS = 10_000


@dataclass(frozen=True)
class SpeedTest:
    """What is timed: a prompt of n_prompt tokens, then n_generate tokens one by one, after depth others."""

    n_prompt: int = 0
    n_generate: int = 0
    depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's name, such as `pp512`, `tg128`, `pp512+tg128 @ d4096`."""
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        parts += [f"tg{self.n_generate}"] if self.n_generate else []
        return "+".join(parts) + (f" @ d{self.depth}" if self.depth else "")

    @property
    def n_timed(self) -> int:
        """Number of tokens that are timed."""
        return self.n_prompt + self.n_generate

    @property
    def n_ctx(self) -> int:
        """Number of positions that the test needs."""
        return self.depth + self.n_timed


@dataclass(frozen=True)
class SpeedSettings:
    """Under what a test is run.

    n_batch, n_ubatch: most tokens of a decode, and computed at a time. key_type, value_type: types of the KV cache.
    flash_attention: None lets llama.cpp choose. n_threads: None for all cores. n_gpu_layers: -1 for all that fit.
    devices: names of the devices to offload to; None for llama.cpp's choice, none of them for an empty tuple.
    """

    n_gpu_layers: int = -1
    devices: tuple[str, ...] | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    key_type: GgmlType = GgmlType.F16
    value_type: GgmlType = GgmlType.F16
    flash_attention: bool | None = None
    n_threads: int | None = None


@dataclass(frozen=True)
class SpeedPlan:
    """Lists of what to combine; the defaults are llama-bench's.

    combined: (n_prompt, n_generate) of tests that time both together. repetitions: runs of each test after a first
    one that is not counted, which `warm_up` switches off. delay_s: seconds of rest before each test, to cool down.
    """

    n_prompt: tuple[int, ...] = (512,)
    n_generate: tuple[int, ...] = (128,)
    combined: tuple[tuple[int, int], ...] = ()
    depths: tuple[int, ...] = (0,)
    n_gpu_layers: tuple[int, ...] = (-1,)
    devices: tuple[tuple[str, ...] | None, ...] = (None,)
    n_batch: tuple[int, ...] = (2048,)
    n_ubatch: tuple[int, ...] = (512,)
    key_types: tuple[GgmlType, ...] = (GgmlType.F16,)
    value_types: tuple[GgmlType, ...] = (GgmlType.F16,)
    flash_attention: tuple[bool | None, ...] = (None,)
    n_threads: tuple[int | None, ...] = (None,)
    repetitions: int = 5
    warm_up: bool = True
    delay_s: float = 0.0

    def check(self) -> None:
        """Raise InputError for plans that cannot be carried out."""
        if self.repetitions < 1 or not 0 <= self.delay_s < 86400:
            raise InputError("speed tests need at least one repetition, and a delay of less than a day")
        counts = [*self.n_prompt, *self.n_generate, *itertools.chain(*self.combined), *self.depths]
        if any(not 0 <= n <= MAX_TOKENS for n in counts):
            raise InputError(f"token counts of speed tests lie between 0 and {MAX_TOKENS}")
        threads = [n for n in self.n_threads if n is not None]
        if any(n < 1 for n in [*self.n_batch, *self.n_ubatch, *threads]):
            raise InputError("batch sizes and thread counts of speed tests must be at least 1")
        n_runs = sum(1 for _ in itertools.islice(self.runs(), _MAX_RUNS + 1))
        if n_runs > _MAX_RUNS:
            raise InputError(f"more than {_MAX_RUNS} combinations of speed tests and settings; give fewer values")

    def settings(self) -> Iterator[SpeedSettings]:
        """Yield the combinations of settings, those first that need the model loaded anew least often."""
        for values in itertools.product(
            self.n_gpu_layers,
            self.devices,
            self.n_batch,
            self.n_ubatch,
            self.key_types,
            self.value_types,
            self.flash_attention,
            self.n_threads,
        ):
            yield SpeedSettings(*values)

    def tests(self, depth: int) -> Iterator[SpeedTest]:
        """Yield the tests at a depth; those of no tokens are left out."""
        pairs = [*((n, 0) for n in self.n_prompt), *((0, n) for n in self.n_generate), *self.combined]
        for n_prompt, n_generate in pairs:
            if n_prompt or n_generate:
                yield SpeedTest(n_prompt, n_generate, depth)

    def runs(self) -> Iterator[tuple[SpeedSettings, SpeedTest]]:
        """Yield all tests under all settings, in llama-bench's order."""
        for settings in self.settings():
            for depth in self.depths:
                for test in self.tests(depth):
                    yield settings, test
