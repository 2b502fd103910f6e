"""Options of `bench` that are not those of its speed tests."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma4_quant.errors import InputError
from gemma4_quant.ggml import CACHE_TYPES, GgmlType

if TYPE_CHECKING:
    from gemma4_quant.benchmark import BenchOptions
    from gemma4_quant.measuring.speed_plan import SpeedPlan

_PANEL = "Reference"
_FORMATS = ("compact", "llama")

Reference = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        help="What to measure divergence from: a full-precision GGUF, or stored predictions.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
SaveReference = Annotated[
    Path | None,
    typer.Option(
        "--save-reference",
        metavar="FILE",
        help="Store the reference's predictions, to compare with them later without the model.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
ReferenceFormat = Annotated[
    str,
    typer.Option(
        "--reference-format",
        metavar="|".join(_FORMATS),
        help="How to store them: compact, or in llama-perplexity's format, which is 85 times larger.",
        rich_help_panel=_PANEL,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Go on when model and reference differ, or memory looks too small."),
]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "-f",
        "--file",
        metavar="[NAME=]PATH,...",
        help="Texts to score, each a domain: UTF-8 text, chats as .jsonl, or a directory of them.",
        show_default=False,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--ppl-stride",
        min=1,
        help="Overlap raw chunks: score N tokens of each, N after the last.",
        show_default=False,
    ),
]
Raw = Annotated[
    bool, typer.Option("--raw", help="Score raw text, as llama-perplexity does, and not as the model's own turns.")
]
OwnTokens = Annotated[
    int,
    typer.Option("--self", metavar="N", min=0, help="Score on N tokens of the reference's own answers as well."),
]
NoScore = Annotated[bool, typer.Option("--no-score", help="Measure speed alone, without any text.")]
CacheTypes = Annotated[
    str | None,
    typer.Option(
        "--kv",
        metavar="TYPE,...",
        help="Compare types of the KV cache, of keys and values in all pairs, such as f16,q8_0,q4_0.",
        show_default=False,
    ),
]
CacheContext = Annotated[
    int, typer.Option("--kv-ctx-size", min=16, help="Tokens in a chunk of text when caches are compared.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of all that is drawn.")]
Confidence = Annotated[
    float, typer.Option("--confidence", min=50, max=99.9, help="Percent that intervals are to cover.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run of the same command.")]


def bench_options(
    *,
    speed: "SpeedPlan",
    n_ctx: int,
    n_chunks: int | None,
    stride: int | None,
    raw: bool,
    own_tokens: int,
    save_reference: Path | None,
    reference_format: str,
    cache_types: str | None,
    cache_context: int,
    seed: int,
    confidence: float,
    force: bool,
    resume: bool,
    command: tuple[str, ...],
) -> "BenchOptions":
    """Return what the options describe; models are scored under the first of each setting of the speed tests."""
    from gemma4_quant.benchmark import BenchOptions
    from gemma4_quant.measuring.bootstrap import BootstrapOptions
    from gemma4_quant.measuring.cache_matrix import CacheOptions
    from gemma4_quant.measuring.decoding import RunOptions
    from gemma4_quant.measuring.reference_choice import SaveOptions
    from gemma4_quant.measuring.results import ReferenceKind
    from gemma4_quant.measuring.scored_text import WindowOptions
    from gemma4_quant.measuring.scoring import ScoringOptions
    from gemma4_quant.texts.framing import Framing

    if reference_format not in _FORMATS:
        raise typer.BadParameter(
            f"{reference_format!r} is not {' or '.join(_FORMATS)}", param_hint="--reference-format"
        )
    settings = next(iter(speed.settings()))
    kinds = {"compact": ReferenceKind.COMPACT, "llama": ReferenceKind.LLAMA}
    return BenchOptions(
        framing=Framing.RAW if raw else None,
        own_tokens=own_tokens,
        windows=WindowOptions(n_ctx, n_chunks, stride),
        scoring=ScoringOptions(
            run=RunOptions(settings.n_threads, settings.key_type, settings.value_type, settings.flash_attention),
            n_gpu_layers=None if settings.n_gpu_layers < 0 else settings.n_gpu_layers,
            devices=settings.devices,
            force=force,
            folder=cache_folder() / "bench",
            resume=resume,
        ),
        bootstrap=BootstrapOptions(confidence=confidence / 100, seed=seed),
        cache=None if cache_types is None else CacheOptions(_cache_types(cache_types), cache_context),
        speed=speed if any(speed.runs()) else None,
        save=None if save_reference is None else SaveOptions(save_reference, kinds[reference_format]),
        command=("gemma4-quant", *command),
    )


def cache_folder() -> Path:
    """Return where this user's programs keep what they can make again (XDG base directories)."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "gemma4-quant"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise InputError("there is no home directory to keep results in; set XDG_CACHE_HOME") from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "gemma4-quant"


def _cache_types(text: str) -> tuple[GgmlType, ...]:
    found = []
    for part in text.split(","):
        name = part.strip().upper()
        if name not in GgmlType.__members__ or GgmlType[name] not in CACHE_TYPES:
            known = ", ".join(sorted(kind.name.lower() for kind in CACHE_TYPES))
            raise typer.BadParameter(f"{part!r} is no type of a KV cache; known are {known}", param_hint="--kv")
        found.append(GgmlType[name])
    return tuple(dict.fromkeys(found))
