"""Checkpoint → projector GGUF (`mmproj-….gguf`), which llama.cpp's mtmd loads beside the text model."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.checkpoint import open_checkpoint
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.half import LARGEST
from gemma4_quant.conversion import ConvertResult, check_out_type, output_path, write_converted
from gemma4_quant.converters import auto_type, float_type
from gemma4_quant.converters.projector import is_limit, open_projector
from gemma4_quant.destination import input_files
from gemma4_quant.errors import listed
from gemma4_quant.ggml import FileType, GgmlType
from gemma4_quant.metadata import uint32
from gemma4_quant.model import Model, Tensor
from gemma4_quant.plan import Assignment, make_plan
from gemma4_quant.progress import Progress

logger = logging.getLogger(__name__)

_SCAN_WEIGHTS = 1 << 20
"""Weights looked at together, 4 MB as float32."""


def convert_projector(
    checkpoint: Path,
    outfile: Path | None = None,
    out_type: str = "auto",
    *,
    model_name: str | None = None,
    exact_gelu: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert the vision and audio encoders of a Gemma 4 checkpoint to a GGUF file for llama.cpp's mtmd.

    outfile: as for `convert`. out_type: bf16, f16, f32, q8_0, or auto for the 16-bit type the encoders are stored in
    and BF16 when it is F32. exact_gelu: have llama.cpp compute the vision tower's activation as the model does;
    without it the file equals that of llama.cpp's converter, with which it takes a rougher one.
    Tensors with weights beyond float16 stay F32 in an F16 file; the result's remarks name them. Raises ConfigError
    for a checkpoint without encoders or with ones that llama.cpp cannot run, CheckpointError and its kinds for other
    bad input, OutputError when the file cannot be written.
    """
    check_out_type(out_type)
    projector = open_projector(open_checkpoint(checkpoint), model_name=model_name, exact_gelu=exact_gelu)
    model = projector.model
    kind = auto_type(model, GgmlType.BF16) if out_type.lower() == "auto" else GgmlType[out_type.upper()]
    output = output_path(checkpoint, outfile, model, kind)
    assignments = list(projector_assignments(model, kind))
    remarks = (*projector.remarks, *_overflow_remarks(assignments, kind))
    for remark in remarks:
        logger.warning("%s", remark)
    return write_converted(
        make_plan({**model.metadata, "general.file_type": uint32(FileType[kind.name])}, assignments),
        output,
        kind,
        inputs=input_files(checkpoint),
        n_threads=n_threads,
        progress=progress,
        remarks=remarks,
    )


def projector_assignments(model: Model, kind: GgmlType) -> Iterator[Assignment]:
    """Yield each tensor of a projector with its type: `kind` where llama.cpp's converter uses it, else F32 or F16.

    Weights that are to become F16 are read to see whether they can.
    """
    for tensor in model.tensors:
        wanted = float_type(tensor.name, tensor.shape, kind)
        if wanted is GgmlType.F16 and _overflows_float16(tensor):
            wanted = GgmlType.F32
        yield Assignment(tensor, wanted, encoder=_LIMIT_ENCODER if is_limit(tensor.name) else None)


def _overflows_float16(tensor: Tensor) -> bool:
    if tensor.type is GgmlType.F16:
        return False
    step = max(1, _SCAN_WEIGHTS // tensor.n_cols)
    decode = codec_for(tensor.type).decode
    for start in range(0, tensor.n_rows, step):
        rows = decode(tensor.source.read_rows(start, min(start + step, tensor.n_rows)), tensor.n_cols)
        if np.abs(rows).max() > LARGEST:
            return True
    return False


def _overflow_remarks(assignments: Iterable[Assignment], kind: GgmlType) -> Iterator[str]:
    names = [a.tensor.name for a in assignments if a.type is not float_type(a.tensor.name, a.tensor.shape, kind)]
    if names:
        yield f"{len(names)} tensors with weights beyond float16 stay F32: {listed(names)}"


@dataclass(frozen=True)
class _LimitEncoder:
    """Writes the limits of clipped layers as they are: an infinite one is no damage, it clips nothing."""

    identity: bytes = b"limits"

    def encode(self, rows: Float32Rows, importance: Float32Row | None, effort: Effort) -> ByteRows:
        del importance, effort
        return np.ascontiguousarray(rows, "<f4").view(np.uint8)


_LIMIT_ENCODER = _LimitEncoder()
