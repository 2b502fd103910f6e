"""llama-bench's recorded runs, and plans from arguments as the command line reads them."""

import json
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from gemma4_quant.cli import speed_options as options
from gemma4_quant.measuring.speed_plan import SpeedPlan

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "golden" / "llama-bench.json").read_text(encoding="utf-8")
)


def read_plan(arguments: list[str]) -> SpeedPlan:
    """Return the plan that arguments describe; raises ValueError with what the command line prints otherwise."""
    plans = []
    app = typer.Typer()

    @app.command()
    def command(
        prompts: options.Prompts = None,
        generations: options.Generations = None,
        combined: options.PromptsAndGenerations = None,
        depths: options.Depths = None,
        batch_sizes: options.BatchSizes = None,
        micro_batch_sizes: options.MicroBatchSizes = None,
        key_types: options.KeyTypes = None,
        value_types: options.ValueTypes = None,
        threads: options.ThreadCounts = None,
        gpu_layers: options.GpuLayerCounts = None,
        flash_attention: options.FlashAttention = None,
        devices: options.DeviceChoices = None,
        repetitions: options.Repetitions = 5,
        no_warmup: options.NoWarmup = False,
        delay: options.Delay = 0.0,
    ) -> None:
        plans.append(
            options.speed_plan(
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
        )

    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    if result.exit_code:
        raise ValueError(result.output)
    return plans[0]
