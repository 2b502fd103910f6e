"""Options that several commands have, with one spelling and one help text."""

from pathlib import Path
from typing import Annotated

import typer

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
