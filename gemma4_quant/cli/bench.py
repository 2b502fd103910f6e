"""`gemma4-quant bench`: how good and how fast a GGUF file is."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gemma4_quant.cli import report_options, speed_options
from gemma4_quant.cli.bench_options import (
    CacheContext,
    CacheTypes,
    Confidence,
    Force,
    NoScore,
    OwnTokens,
    Raw,
    Reference,
    ReferenceFormat,
    Resume,
    SaveReference,
    Seed,
    Stride,
    Texts,
    bench_options,
)
from gemma4_quant.cli.options import Chunks, ContextSize, Json, Verbose
from gemma4_quant.cli.run import EXIT_FAILURE, command, emit_text, fail, set_up_logging, terminal_progress


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(
        app,
        examples=[
            "gemma4-quant bench model-Q4_K_M.gguf",
            "gemma4-quant bench model-Q4_K_M.gguf --reference model-BF16.gguf -f code=a.py -f chats.jsonl",
        ],
    )
    def bench(
        models: Annotated[
            list[Path] | None,
            typer.Argument(metavar="MODEL.gguf...", help="GGUF files to measure.", show_default=False),
        ] = None,
        reference: Reference = None,
        texts: Texts = None,
        ctx_size: ContextSize = 512,
        chunks: Chunks = None,
        stride: Stride = None,
        raw: Raw = False,
        own_tokens: OwnTokens = 0,
        no_score: NoScore = False,
        save_reference: SaveReference = None,
        reference_format: ReferenceFormat = "compact",
        cache_types: CacheTypes = None,
        cache_context: CacheContext = 4096,
        seed: Seed = 0,
        confidence: Confidence = 95.0,
        force: Force = False,
        resume: Resume = False,
        prompts: speed_options.Prompts = None,
        generations: speed_options.Generations = None,
        combined: speed_options.PromptsAndGenerations = None,
        depths: speed_options.Depths = None,
        batch_sizes: speed_options.BatchSizes = None,
        micro_batch_sizes: speed_options.MicroBatchSizes = None,
        key_types: speed_options.KeyTypes = None,
        value_types: speed_options.ValueTypes = None,
        threads: speed_options.ThreadCounts = None,
        gpu_layers: speed_options.GpuLayerCounts = None,
        flash_attention: speed_options.FlashAttention = None,
        devices: speed_options.DeviceChoices = None,
        repetitions: speed_options.Repetitions = 5,
        no_warmup: speed_options.NoWarmup = False,
        delay: speed_options.Delay = 0.0,
        list_devices: speed_options.ListDevices = False,
        output_format: report_options.Format = None,
        error_format: report_options.ErrorFormat = None,
        report: report_options.Report = None,
        card: report_options.Card = None,
        compare: report_options.Compare = None,
        json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        """Measure perplexity, KL divergence from a reference, and tokens per second."""
        if list_devices:
            emit_text(speed_options.device_lines(), as_is=False)
            return
        speed = speed_options.speed_plan(
            prompts=prompts,
            generations=generations,
            combined=combined,
            depths=depths,
            batch_sizes=batch_sizes,
            micro_batch_sizes=micro_batch_sizes,
            key_types=key_types,
            value_types=value_types,
            threads=threads,
            gpu_layers=gpu_layers,
            flash_attention=flash_attention,
            devices=devices,
            repetitions=repetitions,
            no_warmup=no_warmup,
            delay=delay,
        )
        set_up_logging(verbose=verbose)
        options = bench_options(
            speed=speed,
            n_ctx=ctx_size,
            n_chunks=chunks,
            stride=stride,
            raw=raw,
            own_tokens=own_tokens,
            save_reference=save_reference,
            reference_format=reference_format,
            cache_types=cache_types,
            cache_context=cache_context,
            seed=seed,
            confidence=confidence,
            force=force,
            resume=resume,
            command=tuple(sys.argv[1:]),
        )
        delivery = report_options.delivery(
            output_format=output_format,
            error_format=error_format,
            as_json=json,
            report=report,
            card=card,
            compare=compare,
            inputs=[*(models or []), *([reference] if reference is not None else [])],
        )
        from gemma4_quant import benchmark
        from gemma4_quant.measuring.text_choice import named_domains

        result = benchmark.bench(
            models or [],
            reference=reference,
            texts=() if no_score else None if texts is None else named_domains(texts),
            options=options,
            progress=terminal_progress(),
        )
        emit_text(delivery.text(result), as_is=delivery.is_for_programs)
        delivery.write_files(result)
        failed = [f"{model.file.path.name}: {model.failure}" for model in result.models if model.failure]
        if failed:
            fail("; ".join(failed), EXIT_FAILURE)
