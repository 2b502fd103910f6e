"""What `quantize --best` says before it begins, and when it is done."""

from typing import TYPE_CHECKING

from gemma4_quant.cli.moments_text import moments_text
from gemma4_quant.cli.quantize_text import result_text
from gemma4_quant.cli.run import size_text

if TYPE_CHECKING:
    from gemma4_quant.best_forecast import BestForecast
    from gemma4_quant.best_quantization import BestResult


def best_forecast_text(forecast: "BestForecast") -> str:
    """Return what a run takes, a line a resource."""
    room = "" if forecast.fits else ": not enough"
    passes = "once" if forecast.n_passes == 1 else f"{forecast.n_passes} times"
    return "\n".join(
        [
            f"disk: {size_text(forecast.work_bytes)} during the run and {size_text(forecast.output_bytes)} to stay, "
            f"{size_text(forecast.free_bytes)} free{room}",
            f"memory: about {size_text(forecast.memory_bytes)}, and the mapped model",
            f"time: about {_duration(forecast.calibrate_s)} to run about {forecast.n_tokens:,} tokens {passes}, then "
            f"{_duration(forecast.quantize_s)} to quantize, with {forecast.n_threads} threads",
        ]
    )


def best_text(result: "BestResult") -> str:
    """Return what was done."""
    lines = [moments_text(result.moments)] if result.moments else ["took up the second moments of an earlier run"]
    lines += map(result_text, result.files)
    if result.work:
        lines.append(f"kept {result.work}: its moments.gguf serves quantize --calibration")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
