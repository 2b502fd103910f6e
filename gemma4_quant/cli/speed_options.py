"""Options of speed tests, spelled and read as llama-bench's: lists by commas, ranges, repeated options."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from gemma4_quant.ggml import CACHE_TYPES, GgmlType

if TYPE_CHECKING:
    from gemma4_quant.measuring.speed_plan import SpeedPlan

T = TypeVar("T")

_PANEL = "Speed tests"
_MAX_VALUES = 1000  # of one option; more is a range gone wrong
_RANGE = re.compile(r"(-?\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?", re.ASCII)
_FLASH_ATTENTION = {
    **dict.fromkeys(("on", "enabled", "true", "1"), True),
    **dict.fromkeys(("off", "disabled", "false", "0"), False),
    **dict.fromkeys(("auto", "-1"), None),
}


def _option(*names: str, help: str, metavar: str = "N,...") -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        *names, help=help, metavar=metavar, show_default=False, rich_help_panel=_PANEL
    )
    return option


Prompts = Annotated[
    list[str] | None,
    _option("-p", "--n-prompt", help="Tokens of the prompt tests, such as 512,2048 or 512-4096*2; 0 for none [512]."),
]
Generations = Annotated[
    list[str] | None, _option("-n", "--n-gen", help="Tokens of the generation tests; 0 for none [128].")
]
PromptsAndGenerations = Annotated[
    list[str] | None,
    _option("-pg", metavar="PP,TG", help="Test that times a prompt and an answer together, such as 512,128."),
]
Depths = Annotated[
    list[str] | None, _option("-d", "--n-depth", help="Tokens in the context before each test begins [0].")
]
BatchSizes = Annotated[
    list[str] | None, _option("-b", "--batch-size", help="Most tokens of one decode in speed tests [2048].")
]
MicroBatchSizes = Annotated[
    list[str] | None, _option("-ub", "--ubatch-size", help="Most tokens computed at a time in speed tests [512].")
]
KeyTypes = Annotated[
    list[str] | None,
    _option("-ctk", "--cache-type-k", metavar="TYPE,...", help="Types of the keys in the KV cache [f16]."),
]
ValueTypes = Annotated[
    list[str] | None,
    _option("-ctv", "--cache-type-v", metavar="TYPE,...", help="Types of the values in the KV cache [f16]."),
]
ThreadCounts = Annotated[list[str] | None, _option("-t", "--threads", help="Threads to use [all cores].")]
GpuLayerCounts = Annotated[
    list[str] | None,
    _option("-ngl", "--n-gpu-layers", help="Layers on the GPU (Metal, CUDA, …), 0 for none [-1: all that fit]."),
]
FlashAttention = Annotated[
    list[str] | None,
    _option("-fa", "--flash-attn", metavar="on|off|auto,...", help="Flash attention [auto: llama.cpp's choice]."),
]
DeviceChoices = Annotated[
    list[str] | None,
    _option(
        "-dev",
        "--device",
        metavar="NAME[/NAME]...,...",
        help="Devices to offload to, as --list-devices names them; none for the CPU alone [auto: all GPUs].",
    ),
]
Repetitions = Annotated[
    int,
    typer.Option("-r", "--repetitions", min=1, max=10_000, help="Runs of each speed test.", rich_help_panel=_PANEL),
]
NoWarmup = Annotated[
    bool, typer.Option("--no-warmup", help="Count the first run of each speed test.", rich_help_panel=_PANEL)
]
Delay = Annotated[
    float,
    typer.Option(
        "--delay",
        min=0,
        max=86_399,
        help="Seconds of rest before each speed test, to cool down.",
        rich_help_panel=_PANEL,
    ),
]

ListDevices = Annotated[
    bool,
    typer.Option(
        "--list-devices", help="Print the devices that this build of llama.cpp has, and stop.", rich_help_panel=_PANEL
    ),
]


def device_lines() -> str:
    """Return a line for each device; raises RunError when llama-cpp-python cannot be loaded."""
    from gemma4_quant.runner.devices import device_list, devices

    return device_list(devices())


def speed_plan(
    *,
    prompts: list[str] | None,
    generations: list[str] | None,
    combined: list[str] | None,
    depths: list[str] | None,
    batch_sizes: list[str] | None,
    micro_batch_sizes: list[str] | None,
    key_types: list[str] | None,
    value_types: list[str] | None,
    threads: list[str] | None,
    gpu_layers: list[str] | None,
    flash_attention: list[str] | None,
    devices: list[str] | None,
    repetitions: int,
    no_warmup: bool,
    delay: float,
) -> "SpeedPlan":
    """Return the plan that the options describe; raises typer.BadParameter naming the option that does not."""
    from gemma4_quant.measuring.speed_plan import SpeedPlan

    return SpeedPlan(
        n_prompt=_numbers("-p", prompts, 512),
        n_generate=_numbers("-n", generations, 128),
        combined=tuple(_pair(text) for text in combined or ()),
        depths=_numbers("-d", depths, 0),
        n_gpu_layers=_numbers("-ngl", gpu_layers, -1, least=-1),
        devices=_values("-dev", devices, None, _device_names),
        n_batch=_numbers("-b", batch_sizes, 2048, least=1),
        n_ubatch=_numbers("-ub", micro_batch_sizes, 512, least=1),
        key_types=_values("-ctk", key_types, GgmlType.F16, _cache_type),
        value_types=_values("-ctv", value_types, GgmlType.F16, _cache_type),
        flash_attention=_values("-fa", flash_attention, None, _flash_attention),
        n_threads=_numbers("-t", threads, 0, least=1) if threads else (None,),
        repetitions=repetitions,
        warm_up=not no_warmup,
        delay_s=delay,
    )


def _parts(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield from (part.strip() for part in text.split(","))


def _values(option: str, texts: Sequence[str] | None, default: T, read: Callable[[str], T]) -> tuple[T, ...]:
    """Read the parts of an option; `read` raises ValueError with what a part should be."""
    found = []
    for part in _parts(texts or ()):
        try:
            found.append(read(part))
        except ValueError as error:
            raise typer.BadParameter(f"{option}: {part!r} is not {error}") from error
    return tuple(found) or (default,)


def _numbers(option: str, texts: Sequence[str] | None, default: int, *, least: int = 0) -> tuple[int, ...]:
    found: tuple[Sequence[int], ...] = _values(option, texts, (default,), lambda part: _range(part, least))
    numbers = tuple(number for numbers in found for number in numbers)
    if len(numbers) > _MAX_VALUES:
        raise typer.BadParameter(f"{option}: {len(numbers)} values; give at most {_MAX_VALUES}")
    return numbers


def _range(part: str, least: int) -> Sequence[int]:
    """Read a number, or first-last, first-last+step, first-last*factor."""
    expected = f"a number of at least {least}, or a range such as 512-2048, 512-2048+512 or 512-4096*2"
    match = _RANGE.fullmatch(part)
    if match is None or int(match[1]) < least:
        raise ValueError(expected)
    first, last, step = int(match[1]), int(match[2] or match[1]), int(match[4] or 1)
    if last < first:
        raise ValueError(expected)
    found = [first]
    while found[-1] < last:
        following = found[-1] * step if match[3] == "*" else found[-1] + step
        if following <= found[-1] or len(found) > _MAX_VALUES:
            raise ValueError(f"{expected}, of at most {_MAX_VALUES} growing numbers")
        found.append(following)
    return found if found[-1] == last else found[:-1]


def _pair(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(re.fullmatch(r"\s*\d{1,9}\s*", part, re.ASCII) for part in parts):
        raise typer.BadParameter(f"-pg: {text!r} is not a pair such as 512,128; repeat the option for several")
    return int(parts[0]), int(parts[1])


def _cache_type(part: str) -> GgmlType:
    known = {kind.name.lower(): kind for kind in CACHE_TYPES}
    if part.lower() not in known:
        raise ValueError(f"one of {', '.join(known)}")
    return known[part.lower()]


def _flash_attention(part: str) -> bool | None:
    if part.lower() not in _FLASH_ATTENTION:
        raise ValueError("one of on, off, auto")
    return _FLASH_ATTENTION[part.lower()]


def _device_names(part: str) -> tuple[str, ...] | None:
    names = tuple(name.strip() for name in part.split("/"))
    if names == ("auto",):
        return None
    if names == ("none",):
        return ()
    if not all(names):
        raise ValueError("auto, none, or names joined by / such as CUDA0/CUDA1")
    return names
