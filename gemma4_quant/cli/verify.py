"""`gemma4-quant verify`: a GGUF file against the checkpoint it was made from."""

from pathlib import Path
from typing import Annotated

import typer

from gemma4_quant.cli.hub import CacheDir, Revision, Token, local
from gemma4_quant.cli.options import GgufArgument, Json, Threads, Verbose
from gemma4_quant.cli.run import command, emit, set_up_logging, terminal_progress
from gemma4_quant.errors import VerificationError, listed


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(
        app,
        examples=[
            "gemma4-quant verify model-Q4_K_M.gguf --against examples/tiny-gemma4-e",
            "gemma4-quant verify model-Q4_K_M.gguf --against model-BF16.gguf --tensors",
        ],
    )
    def verify(
        model: GgufArgument,
        against: Annotated[
            Path,
            typer.Option(
                "--against", metavar="CHECKPOINT|GGUF|HUB-ID", help="What the file was made from.", show_default=False
            ),
        ],
        adapter: Annotated[
            list[Path] | None,
            typer.Option(
                "--adapter", help="Directory of a LoRA adapter that was merged; repeatable.", show_default=False
            ),
        ] = None,
        tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
        revision: Revision = None,
        cache_dir: CacheDir = None,
        token: Token = None,
        threads: Threads = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        """Compare every tensor, the metadata, tokenizer and chat template of a GGUF file with its checkpoint's."""
        from gemma4_quant import verification
        from gemma4_quant.report.verification_table import verification_table

        set_up_logging(verbose=verbose)
        original = local(against, revision, cache_dir, token)
        result = verification.verify(
            model,
            original,
            adapters=[local(each, None, cache_dir, token) for each in adapter or ()],
            n_threads=threads,
            progress=terminal_progress(),
        )
        emit(result, as_json=json, text="" if json else verification_table(result, with_tensors=tensors))
        if not result.is_ok:
            subjects = dict.fromkeys(fault.subject for fault in result.faults)
            raise VerificationError(f"{model} does not agree with {against}; wrong: {listed(subjects)}")
