"""Speeds as a report needs them: which test stands for reading and which for writing, and names across settings."""

from collections.abc import Iterable
from dataclasses import dataclass

from gemma4_quant.measuring.results import BenchResult, ModelResult
from gemma4_quant.measuring.speed import DRIFT_LIMIT, Speed
from gemma4_quant.report.numbers import UNKNOWN, speed_cell
from gemma4_quant.report.tables import Cell


@dataclass(frozen=True)
class MainTests:
    """Names of the tests that a table with one column each shows; None when there is none of the kind."""

    prompt: str | None
    generation: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Return those that there are."""
        return tuple(name for name in (self.prompt, self.generation) if name is not None)


def main_tests(result: BenchResult) -> MainTests:
    """Return the first prompt test and the first generation test, those at no depth before others."""
    speeds = sorted(all_speeds(result.models), key=lambda speed: speed.counts.depth > 0)
    prompt = next((speed.test for speed in speeds if not speed.counts.n_generate), None)
    generation = next((speed.test for speed in speeds if not speed.counts.n_prompt), None)
    return MainTests(prompt, generation)


def all_speeds(models: Iterable[ModelResult]) -> list[Speed]:
    """Return every speed of every model, in order."""
    return [speed for model in models if model.speeds is not None for speed in model.speeds.speeds]


def speed_named(model: ModelResult, test: str | None) -> Speed | None:
    """Return the model's first result of a test; with several settings, that of the first."""
    return next((speed for speed in all_speeds([model]) if speed.test == test), None)


def written_speed(speed: Speed | None) -> Cell:
    """Write a speed and the deviation of its repetitions, with `!` where they drifted apart."""
    if speed is None:
        return Cell(UNKNOWN)
    cell = speed_cell(speed.tokens_per_second, speed.deviation)
    return Cell(f"{cell.text} !", cell.error) if speed.has_drifted else cell


def drift_notes(result: BenchResult) -> tuple[str, ...]:
    """Say what `!` means, when it stands anywhere."""
    if not any(speed.has_drifted for speed in all_speeds(result.models)):
        return ()
    return (f"! repetitions differ by over {100 * DRIFT_LIMIT:.0f} %: something else ran, or the clock changed",)


def settings_texts(speeds: Iterable[Speed]) -> dict[Speed, str]:
    """Say for each speed under which settings it ran, as far as they differ between these speeds."""
    speeds = list(speeds)
    described = {speed: _described(speed) for speed in speeds}
    varying = [key for key in _described_keys() if len({described[speed][key] for speed in speeds}) > 1]
    return {speed: ", ".join(f"{key} {described[speed][key]}" for key in varying) for speed in speeds}


def _described_keys() -> tuple[str, ...]:
    return ("layers on GPU", "devices", "batch", "micro-batch", "K cache", "V cache", "flash attention", "threads")


def _described(speed: Speed) -> dict[str, str]:
    settings = speed.settings
    flash = {None: "auto", True: "on", False: "off"}[settings.flash_attention]
    values = (
        "all" if settings.n_gpu_layers < 0 else str(settings.n_gpu_layers),
        "auto" if settings.devices is None else "+".join(settings.devices) or "none",
        str(settings.n_batch),
        str(settings.n_ubatch),
        settings.key_type.name.lower(),
        settings.value_type.name.lower(),
        flash,
        "all" if settings.n_threads is None else str(settings.n_threads),
    )
    return dict(zip(_described_keys(), values, strict=True))
