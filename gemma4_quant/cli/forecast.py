"""A dry run's forecast as text: every tensor, totals, files, and what the run needs."""

from gemma4_quant.cli.run import size_text
from gemma4_quant.writing.forecast import DISK_BYTES_PER_S, Forecast, OutputForecast, TensorForecast


def forecast_text(forecast: Forecast) -> str:
    """Return a forecast as lines for people."""
    blocks = [_output_lines(output) for output in forecast.outputs]
    return "\n".join([*(line for block in blocks for line in [*block, ""]), *_needs(forecast)])


def _output_lines(output: OutputForecast) -> list[str]:
    width = max((len(tensor.name) for tensor in output.tensors), default=0)
    replaced = {True: ", replaces what is there", False: ""}
    return [
        f"{output.file_type}:",
        *(_tensor_line(tensor, width) for tensor in output.tensors),
        f"{len(output.tensors)} tensors, {output.n_weights:,} weights, {output.bits_per_weight:.2f} bits per weight",
        *(
            f"would write {file.path} ({size_text(file.n_bytes)}, {file.n_tensors} tensors{replaced[file.exists]})"
            for file in output.files
        ),
    ]


def _tensor_line(tensor: TensorForecast, width: int) -> str:
    shape = " × ".join(map(str, tensor.shape))
    change = f"{tensor.source_type} → {tensor.type}"
    notes = [
        tensor.reason,
        f"instead of {tensor.wanted}, whose blocks do not divide its rows" if tensor.wanted else "",
    ]
    told = "; ".join(note for note in notes if note)
    return f"  {tensor.name:<{width}}  {shape:<20} {change:<14} {size_text(tensor.n_bytes):>11}  {told}".rstrip()


def _needs(forecast: Forecast) -> list[str]:
    room = "" if forecast.fits else ": not enough"
    if forecast.seconds is None:
        time = "not known before the encoders are compiled, which the first run on a machine does"
    else:
        time = (
            f"about {max(1, round(forecast.seconds))} s with {forecast.n_threads} threads, by a trial of the "
            f"encoders on this machine just now; the disk is taken to move {DISK_BYTES_PER_S / 1e9:.0f} GB/s"
        )
    return [
        f"disk: {size_text(forecast.disk_bytes)} needed, {size_text(forecast.free_bytes)} free{room}",
        f"time: {time}",
        f"memory: about {size_text(forecast.memory_bytes)}, whatever the size of the model",
        "dry run: nothing was written",
    ]
