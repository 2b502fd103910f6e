"""`gemma4-quant bench`: how good and how fast a GGUF file is."""

from pathlib import Path
from typing import Annotated

import typer

from gemma4_quant.cli.options import Chunks, ContextSize, GpuLayers, Json, Threads, Verbose
from gemma4_quant.cli.run import command, emit, set_up_logging, terminal_progress


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(
        app,
        examples=[
            "gemma4-quant bench model-Q4_K_M.gguf",
            "gemma4-quant bench model-Q4_K_M.gguf --reference model-BF16.gguf -f text.txt",
        ],
    )
    def bench(
        models: Annotated[
            list[Path], typer.Argument(metavar="MODEL.gguf...", help="GGUF files to measure.", show_default=False)
        ],
        reference: Annotated[
            Path | None,
            typer.Option(
                "-r", "--reference", help="Full-precision GGUF to measure divergence from.", show_default=False
            ),
        ] = None,
        text: Annotated[
            Path | None,
            typer.Option("-f", "--file", help="UTF-8 text for perplexity and divergence.", show_default=False),
        ] = None,
        ctx_size: ContextSize = 512,
        chunks: Chunks = None,
        n_prompt: Annotated[int, typer.Option("-p", "--n-prompt", min=0, help="Tokens of the prompt test.")] = 512,
        n_generate: Annotated[int, typer.Option("-n", "--n-gen", min=0, help="Tokens of the generation test.")] = 128,
        repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Runs of each speed test.")] = 5,
        n_gpu_layers: GpuLayers = 0,
        threads: Threads = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        """Measure perplexity, KL divergence from a reference, and tokens per second."""
        from gemma4_quant import benchmark
        from gemma4_quant.report.table import bench_table

        set_up_logging(verbose=verbose)
        result = benchmark.bench(
            models,
            reference=reference,
            text=text,
            n_ctx=ctx_size,
            n_chunks=chunks,
            n_prompt=n_prompt,
            n_generate=n_generate,
            repetitions=repetitions,
            n_threads=threads,
            n_gpu_layers=n_gpu_layers,
            progress=terminal_progress(),
        )
        emit(result, as_json=json, text="" if json else bench_table(result))
