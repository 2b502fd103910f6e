"""`gemma4-quant calibrate`: text → importance matrix."""

from pathlib import Path
from typing import Annotated

import typer

from gemma4_quant.cli.options import Chunks, ContextSize, GgufArgument, GpuLayers, Json, Threads, Verbose
from gemma4_quant.cli.run import command, emit, set_up_logging, terminal_progress
from gemma4_quant.errors import listed


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(
        app,
        examples=[
            "gemma4-quant calibrate model-BF16.gguf -f text.txt",
            "gemma4-quant calibrate model-BF16.gguf -f text.txt -o imatrix.gguf --chunks 100",
        ],
    )
    def calibrate(
        model: GgufArgument,
        text: Annotated[
            list[Path], typer.Option("-f", "--file", help="UTF-8 text to run; repeatable.", show_default=False)
        ],
        output: Annotated[Path, typer.Option("-o", "--output-file", help="Importance file to write.")] = Path(
            "imatrix.gguf"
        ),
        ctx_size: ContextSize = 512,
        chunks: Chunks = None,
        process_output: Annotated[
            bool, typer.Option("--process-output", help="Collect for output.weight too.")
        ] = False,
        parse_special: Annotated[
            bool, typer.Option("--parse-special", help="Read tokens such as <|turn> in the text as tokens.")
        ] = False,
        n_gpu_layers: GpuLayers = 0,
        threads: Threads = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        """Run text through a model and record how strongly each input column is used."""
        from gemma4_quant import calibration

        set_up_logging(verbose=verbose)
        result = calibration.calibrate(
            model,
            text,
            output=output,
            n_ctx=ctx_size,
            n_chunks=chunks,
            n_threads=threads,
            n_gpu_layers=n_gpu_layers,
            process_output=process_output,
            parse_special=parse_special,
            progress=terminal_progress(),
        )
        lines = [
            f"wrote {result.path}: {result.n_tensors} tensors from {result.n_tokens:,} tokens "
            f"({result.n_chunks} chunks) in {result.seconds:.1f} s on {result.device}"
        ]
        if result.unseen:
            n_experts = sum(len(each.experts) for each in result.unseen)
            lines.append(
                f"{n_experts} experts saw no token and will count as average ones; more text helps: "
                + listed(each.name for each in result.unseen)
            )
        emit(result, as_json=json, text="\n".join(lines))
