"""Checkpoint → projector GGUF (`mmproj-….gguf`), which llama.cpp's mtmd loads beside the text model."""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.half import LARGEST
from gemma4_quant.conversion import (
    DEFAULTS,
    ConversionOptions,
    ConvertResult,
    check_out_type,
    output_path,
    write_converted,
)
from gemma4_quant.converters import auto_type, float_type, open_with_adapters
from gemma4_quant.converters.projector import Projector, is_limit, open_projector
from gemma4_quant.errors import listed
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.metadata import uint32
from gemma4_quant.model import Model, Tensor
from gemma4_quant.progress import Progress
from gemma4_quant.writing.destination import input_files
from gemma4_quant.writing.forecast import Forecast, forecast
from gemma4_quant.writing.plan import Assignment, Cost, Plan, make_plan
from gemma4_quant.writing.writer import Job

logger = logging.getLogger(__name__)

_SCAN_WEIGHTS = 1 << 20
"""Weights looked at together, 4 MB as float32."""


def convert_projector(
    checkpoint: Path,
    outfile: Path | None = None,
    out_type: str = "auto",
    *,
    model_name: str | None = None,
    adapters: Sequence[Path] = (),
    exact_gelu: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert the vision and audio encoders of a Gemma 4 checkpoint to a GGUF file for llama.cpp's mtmd.

    outfile: as for `convert`. out_type: bf16, f16, f32, q8_0, or auto for the 16-bit type the encoders are stored in
    and BF16 when it is F32. adapters: directories of LoRA adapters to merge, one after the other. exact_gelu: have
    llama.cpp compute the vision tower's activation as the model does; without it the file equals that of llama.cpp's
    converter, with which it takes a rougher one.
    Tensors with weights beyond float16 stay F32 in an F16 file; the result's remarks name them. Raises ConfigError
    for a checkpoint without encoders or with ones that llama.cpp cannot run, CheckpointError and its kinds for other
    bad input, OutputError when the file cannot be written.
    """
    options = ConversionOptions(out_type, model_name, adapters, exact_gelu=exact_gelu, n_threads=n_threads)
    return convert_encoders(checkpoint, outfile, options, progress)


def convert_encoders(
    checkpoint: Path,
    outfile: Path | None = None,
    options: ConversionOptions = DEFAULTS,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert as `convert_projector` does."""
    kind, output, projector = _prepare(checkpoint, outfile, options)
    too_large = [t.name for t in projector.model.tensors if becomes_float16(t, kind) and _overflows_float16(t)]
    remarks = (*projector.remarks, *_overflow_remarks(too_large))
    for remark in remarks:
        logger.warning("%s", remark)
    return write_converted(
        projector_plan(projector.model, kind, too_large),
        output,
        kind,
        inputs=input_files(checkpoint),
        n_threads=options.n_threads,
        progress=progress,
        remarks=remarks,
    )


def forecast_projector(
    checkpoint: Path, outfile: Path | None = None, options: ConversionOptions = DEFAULTS
) -> Forecast:
    """Say what `convert_encoders` would do with the same arguments; reads no weight and writes nothing.

    Weights beyond float16, which would need more room in an F16 file, are not looked for.
    """
    kind, output, projector = _prepare(checkpoint, outfile, options)
    job = Job(projector_plan(projector.model, kind), output)
    inputs = input_files(checkpoint)
    return forecast({kind.name.lower(): job}, effort=Effort.PLAIN, inputs=inputs, n_threads=options.n_threads)


def projector_plan(model: Model, kind: GgmlType, too_large: Collection[str] = ()) -> Plan:
    """Lay out a projector: `kind` where llama.cpp's converter uses it, F32 or F16 elsewhere.

    too_large: names of tensors with weights beyond float16, which stay F32.
    """
    metadata = {**model.metadata, "general.file_type": uint32(FileType[kind.name])}
    return make_plan(
        metadata,
        [
            Assignment(
                tensor,
                GgmlType.F32 if tensor.name in too_large else float_type(tensor.name, tensor.shape, kind),
                encoder=_LIMIT_ENCODER if is_limit(tensor.name) else None,
            )
            for tensor in model.tensors
        ],
    )


def becomes_float16(tensor: Tensor, kind: GgmlType) -> bool:
    """Tell whether a tensor is narrowed to F16 in a file of `kind`."""
    return tensor.type is not GgmlType.F16 and float_type(tensor.name, tensor.shape, kind) is GgmlType.F16


def _prepare(checkpoint: Path, outfile: Path | None, options: ConversionOptions) -> tuple[GgmlType, Path, Projector]:
    """Choose type and name of the output, and open what goes into it."""
    check_out_type(options.out_type)
    opened = open_with_adapters(checkpoint, options.adapters)
    projector = open_projector(opened, model_name=options.model_name, exact_gelu=options.exact_gelu)
    is_auto = options.out_type.lower() == "auto"
    kind = auto_type(projector.model, GgmlType.BF16) if is_auto else GgmlType[options.out_type.upper()]
    return kind, output_path(checkpoint, outfile, projector.model, kind, options.adapters), projector


def _overflows_float16(tensor: Tensor) -> bool:
    step = max(1, _SCAN_WEIGHTS // tensor.n_cols)
    decode = codec_for(tensor.type).decode
    for start in range(0, tensor.n_rows, step):
        rows = decode(tensor.source.read_rows(start, min(start + step, tensor.n_rows)), tensor.n_cols)
        if np.abs(rows).max() > LARGEST:
            return True
    return False


def _overflow_remarks(too_large: Sequence[str]) -> Iterator[str]:
    if too_large:
        yield f"{len(too_large)} tensors with weights beyond float16 stay F32: {listed(too_large)}"


@dataclass(frozen=True)
class _LimitEncoder:
    """Writes the limits of clipped layers as they are: an infinite one is no damage, it clips nothing."""

    identity: bytes = b"limits"
    rows_at_once: int = 1

    def encode(self, rows: Float32Rows, importance: Float32Row | None, effort: Effort, matrix: int = 0) -> ByteRows:
        del importance, effort, matrix
        return np.ascontiguousarray(rows, "<f4").view(np.uint8)

    def cost(self, effort: Effort) -> Cost | None:
        del effort
        return None


_LIMIT_ENCODER = _LimitEncoder()
