"""`gemma4-quant inspect`: what is in a checkpoint or GGUF file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma4_quant.cli.hub import CacheDir, Revision, Token, local
from gemma4_quant.cli.options import Json, Verbose
from gemma4_quant.cli.run import command, emit, set_up_logging, size_text
from gemma4_quant.report.printable import printable

if TYPE_CHECKING:
    from gemma4_quant.inspection import Inspection


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(
        app,
        examples=[
            "gemma4-quant inspect examples/tiny-gemma4-e",
            "gemma4-quant inspect model-Q4_K_M.gguf --tensors",
        ],
    )
    def inspect(
        path: Annotated[
            Path, typer.Argument(metavar="CHECKPOINT|GGUF|HUB-ID", help="What to look into.", show_default=False)
        ],
        tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
        revision: Revision = None,
        cache_dir: CacheDir = None,
        token: Token = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        """Show architecture, metadata, tensor types and sizes."""
        from gemma4_quant import inspection

        set_up_logging(verbose=verbose)
        result = inspection.inspect(local(path, revision, cache_dir, token))
        emit(result, as_json=json, text="" if json else _describe(result, with_tensors=tensors))


def _describe(result: "Inspection", *, with_tensors: bool) -> str:
    name = f" “{result.name}”" if result.name else ""
    file_type = f", {result.file_type}" if result.file_type else ""
    lines = [
        f"{result.path}: {result.kind}, {result.architecture}{name}{file_type}",
        f"{result.n_weights:,} weights in {len(result.tensors)} tensors, {size_text(result.n_bytes)}, "
        f"{result.bits_per_weight:.2f} bits per weight",
        "",
        "type       tensors         weights         size",
    ]
    lines += [f"{t.type:<10} {t.n_tensors:>7} {t.n_weights:>15,} {size_text(t.n_bytes):>12}" for t in result.types]
    lines += ["", "metadata"]
    lines += [f"  {key} = {value}" for key, value in result.metadata.items()]
    if with_tensors:
        lines += ["", "tensors"]
        lines += [
            f"  {t.name:<32} {t.type:<6} {' × '.join(map(str, t.shape)):<22} {size_text(t.n_bytes):>12}"
            for t in result.tensors
        ]
    return "\n".join(printable(line) for line in lines)
