"""The `gemma4-quant` command: one module a subcommand, imported light, heavy work imported when it runs."""

from typing import Annotated

import typer

from gemma4_quant import __version__
from gemma4_quant.cli import bench, calibrate, convert, inspect, quantize, verify

app = typer.Typer(
    name="gemma4-quant",
    help="Bring Gemma 4 models to GGUF: convert, calibrate, quantize, and measure what came out.",
    epilog="\b\nThe main job:\n"
    "  gemma4-quant convert CHECKPOINT --outfile model-BF16.gguf\n"
    "  gemma4-quant calibrate model-BF16.gguf -f text.txt -o imatrix.gguf\n"
    "  gemma4-quant quantize model-BF16.gguf --type q4_k_m --imatrix imatrix.gguf\n"
    "  gemma4-quant bench model-Q4_K_M.gguf --reference model-BF16.gguf -f other.txt",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gemma4-quant {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave."),
    ] = False,
) -> None:
    pass


convert.register(app)
calibrate.register(app)
quantize.register(app)
bench.register(app)
inspect.register(app)
verify.register(app)
