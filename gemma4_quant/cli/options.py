"""Options that several commands have, with one spelling and one help text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma4_quant.errors import InputError

if TYPE_CHECKING:
    from gemma4_quant.formats.shards import SplitLimits

Threads = Annotated[
    int | None,
    typer.Option("-t", "--threads", min=1, help="Threads to use [default: all cores].", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Tell more on stderr.")]
ContextSize = Annotated[int, typer.Option("-c", "--ctx-size", min=16, help="Tokens in a chunk of text.")]
Chunks = Annotated[
    int | None,
    typer.Option("--chunks", min=1, help="Use only the first N chunks of the text.", show_default=False),
]
GpuLayers = Annotated[
    int,
    typer.Option("-ngl", "--n-gpu-layers", min=-1, help="Layers on the GPU (Metal, CUDA, …); -1 for all."),
]
GgufArgument = Annotated[
    Path, typer.Argument(metavar="MODEL.gguf", help="GGUF file of a Gemma 4 model.", show_default=False)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only tell what would be written, and what it needs; work on no weights.")
]
SplitMaxSize = Annotated[
    str | None,
    typer.Option(
        "--split-max-size",
        metavar="N[K|M|G]",
        help="Write several files of at most N bytes of tensors, such as 2G.",
        show_default=False,
    ),
]
SplitMaxTensors = Annotated[
    int | None,
    typer.Option(
        "--split-max-tensors", min=1, help="Write several files of at most N tensors each.", show_default=False
    ),
]


def split_limits(max_size: str | None, max_tensors: int | None) -> "SplitLimits | None":
    """Return what the two options say; None when they are not given. Raises typer.BadParameter."""
    from gemma4_quant.formats.shards import SplitLimits, parse_size

    if max_size is None and max_tensors is None:
        return None
    try:
        return SplitLimits(None if max_size is None else parse_size(max_size), max_tensors)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
