"""Checkpoint → GGUF with float types (or plainly rounded Q8_0): the pipeline with a recipe of floats."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gemma4_quant.codecs.base import Effort
from gemma4_quant.converters import auto_type, default_file_name, float_type, load_model
from gemma4_quant.errors import UnsupportedTypeError
from gemma4_quant.formats.shards import SplitRule, shard_paths
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.hub.cache import output_directory
from gemma4_quant.metadata import uint32
from gemma4_quant.model import Model
from gemma4_quant.progress import Progress
from gemma4_quant.writing.destination import cannot_write, input_files, with_type
from gemma4_quant.writing.forecast import Forecast, forecast
from gemma4_quant.writing.plan import Assignment, Plan, make_plan
from gemma4_quant.writing.writer import Job, write_gguf

OUT_TYPES = ("bf16", "f16", "f32", "q8_0", "auto")
"""What --outtype accepts, as convert_hf_to_gguf.py does."""


@dataclass(frozen=True)
class ConvertResult:
    """What `convert` wrote.

    path: the file, or the first of `files`, which llama.cpp loads, when the model is split. n_bytes: of all files.
    types: how many tensors have each GGML type. remarks: what a user should know of it.
    """

    path: Path
    out_type: str
    n_bytes: int
    n_weights: int
    n_tensors: int
    types: dict[str, int]
    seconds: float
    remarks: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ConversionOptions:
    """How to convert, whatever is converted.

    out_type: one of OUT_TYPES; auto is the 16-bit type the checkpoint is stored in. model_name: `general.name`.
    adapters: directories of LoRA adapters to merge, one after the other. split: such as shards.SplitLimits, of the
    text model. exact_gelu: see convert_projector. n_threads: None for all cores.
    """

    out_type: str = "auto"
    model_name: str | None = None
    adapters: Sequence[Path] = ()
    split: SplitRule | None = None
    exact_gelu: bool = False
    n_threads: int | None = None


DEFAULTS = ConversionOptions()


def convert(
    checkpoint: Path,
    outfile: Path | None = None,
    out_type: str = "auto",
    *,
    model_name: str | None = None,
    adapters: Sequence[Path] = (),
    split: SplitRule | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert a Gemma 4 checkpoint directory to a GGUF file, or to several if `split` says so.

    outfile: a file, a directory to put it in, or None for the checkpoint's own; `{ftype}` in the name stands for
    the type. The other options: see ConversionOptions. Raises CheckpointError and its kinds for bad input,
    OutputError when the file cannot be written.
    """
    options = ConversionOptions(out_type, model_name, adapters, split, n_threads=n_threads)
    return convert_text_model(checkpoint, outfile, options, progress)


def convert_text_model(
    checkpoint: Path,
    outfile: Path | None = None,
    options: ConversionOptions = DEFAULTS,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert as `convert` does."""
    started = time.monotonic()
    kind, job = _prepare(checkpoint, outfile, options)
    inputs = input_files(checkpoint)
    result = write_converted(job.plan, job.path, kind, inputs=inputs, n_threads=options.n_threads, progress=progress)
    return replace(result, seconds=time.monotonic() - started)


def forecast_conversion(
    checkpoint: Path, outfile: Path | None = None, options: ConversionOptions = DEFAULTS
) -> Forecast:
    """Say what `convert_text_model` would do with the same arguments; reads no weight and writes nothing."""
    kind, job = _prepare(checkpoint, outfile, options)
    inputs = input_files(checkpoint)
    return forecast({kind.name.lower(): job}, effort=Effort.PLAIN, inputs=inputs, n_threads=options.n_threads)


def _prepare(checkpoint: Path, outfile: Path | None, options: ConversionOptions) -> tuple[GgmlType, Job]:
    """Plan a conversion and name its output."""
    check_out_type(options.out_type)
    model = load_model(checkpoint, model_name=options.model_name, adapters=options.adapters)
    kind = auto_type(model) if options.out_type.lower() == "auto" else GgmlType[options.out_type.upper()]
    output = output_path(checkpoint, outfile, model, kind, options.adapters)
    return kind, Job(convert_plan(model, kind, options.split), output)


def check_out_type(out_type: str) -> None:
    """Raise UnsupportedTypeError for what is not in OUT_TYPES, in any case."""
    if out_type.lower() not in OUT_TYPES:
        raise UnsupportedTypeError(
            f"{out_type!r} is not an output type of convert ({', '.join(OUT_TYPES)}); for others run quantize"
        )


def write_converted(
    plan: Plan,
    output: Path,
    kind: GgmlType,
    *,
    inputs: Sequence[Path],
    n_threads: int | None = None,
    progress: Progress | None = None,
    remarks: tuple[str, ...] = (),
) -> ConvertResult:
    """Write the file of a plan with float types and say what was written; see write_gguf."""
    started = time.monotonic()
    write_gguf(
        plan,
        output,
        effort=Effort.PLAIN,
        n_threads=n_threads,
        progress=progress,
        label=f"convert to {kind.name}",
        inputs=inputs,
        durable=False,  # it takes hardly longer than the disk itself, and the checkpoint is still there
    )
    files = shard_paths(output, len(plan.files))
    return ConvertResult(
        path=files[0],
        out_type=kind.name.lower(),
        n_bytes=plan.n_bytes,
        n_weights=sum(planned.tensor.n_weights for planned in plan.tensors),
        n_tensors=len(plan.tensors),
        types=dict(Counter(planned.type.name for planned in plan.tensors)),
        seconds=time.monotonic() - started,
        remarks=remarks,
        files=files,
    )


def convert_plan(model: Model, kind: GgmlType, split: SplitRule | None = None) -> Plan:
    """Lay out a converted model: `kind` where llama.cpp's converter uses it, F32 or F16 elsewhere."""
    metadata = {**model.metadata, "general.file_type": uint32(FileType[kind.name])}
    return make_plan(
        metadata,
        [Assignment(tensor, float_type(tensor.name, tensor.shape, kind)) for tensor in model.tensors],
        split,
    )


def output_path(
    checkpoint: Path, outfile: Path | None, model: Model, kind: GgmlType, adapters: Sequence[Path] = ()
) -> Path:
    """Return the file to write, which is not that of the model without `adapters`; see convert's `outfile`."""
    try:
        is_directory = outfile is None or outfile.is_dir()
    except OSError as error:  # a name too long for the file system
        raise cannot_write(Path(str(outfile)), error) from error
    if outfile is None or is_directory:
        path = (outfile or output_directory(checkpoint)) / default_file_name(model.metadata, kind)
        return path.with_stem("-".join([path.stem, *(adapter.resolve().name for adapter in adapters)])[:200])
    return with_type(outfile, kind.name)
