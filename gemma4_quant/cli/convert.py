"""`gemma4-quant convert`: checkpoint → GGUF."""

from pathlib import Path
from typing import Annotated

import typer

from gemma4_quant.cli.options import Json, SplitMaxSize, SplitMaxTensors, Threads, Verbose, split_limits
from gemma4_quant.cli.run import command, emit, files_text, set_up_logging, size_text, terminal_progress


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(
        app,
        examples=[
            "gemma4-quant convert examples/tiny-gemma4-e",
            "gemma4-quant convert examples/tiny-gemma4-e --outfile tiny-{ftype}.gguf --outtype q8_0",
        ],
    )
    def convert(
        checkpoint: Annotated[
            Path,
            typer.Argument(metavar="CHECKPOINT", help="Directory of a Hugging Face checkpoint.", show_default=False),
        ],
        outfile: Annotated[
            Path | None,
            typer.Option(
                "--outfile",
                help="File to write; {ftype} in its name stands for the type.",
                show_default="in CHECKPOINT",
            ),
        ] = None,
        outtype: Annotated[
            str,
            typer.Option("--outtype", help="bf16, f16, f32, q8_0, or auto: the 16-bit type of the checkpoint."),
        ] = "auto",
        model_name: Annotated[
            str | None,
            typer.Option("--model-name", help="Name to record in the file.", show_default="the directory's"),
        ] = None,
        adapter: Annotated[
            list[Path] | None,
            typer.Option("--adapter", help="Directory of a LoRA adapter to merge; repeatable.", show_default=False),
        ] = None,
        split_max_size: SplitMaxSize = None,
        split_max_tensors: SplitMaxTensors = None,
        threads: Threads = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        """Convert a Gemma 4 checkpoint to a GGUF file."""
        from gemma4_quant import conversion

        set_up_logging(verbose=verbose)
        if outtype.lower() not in conversion.OUT_TYPES:
            raise typer.BadParameter(
                f"{outtype!r} is not an --outtype ({', '.join(conversion.OUT_TYPES)}); for other types run quantize"
            )
        result = conversion.convert(
            checkpoint,
            outfile,
            outtype,
            model_name=model_name,
            adapters=adapter or (),
            split=split_limits(split_max_size, split_max_tensors),
            n_threads=threads,
            progress=terminal_progress(),
        )
        types = ", ".join(f"{count} {name}" for name, count in result.types.items())
        text = (
            f"wrote {files_text(result.files)} ({size_text(result.n_bytes)}, {result.n_tensors} tensors: {types}) "
            f"in {result.seconds:.1f} s"
        )
        emit(result, as_json=json, text=text)
