"""LoRA adapter of PEFT → adapter GGUF, which llama.cpp applies to a base model while it runs (--lora)."""

import logging
from pathlib import Path

from gemma4_quant.conversion import ConvertResult, check_out_type, output_path, write_converted
from gemma4_quant.converters import auto_type, float_type
from gemma4_quant.converters.lora.adapter_file import open_adapter_file
from gemma4_quant.converters.lora.settings import read_settings
from gemma4_quant.errors import CheckpointError
from gemma4_quant.ggml import GgmlType
from gemma4_quant.progress import Progress
from gemma4_quant.writing.destination import input_files
from gemma4_quant.writing.plan import Assignment, make_plan

logger = logging.getLogger(__name__)


def convert_adapter(
    adapter: Path,
    outfile: Path | None = None,
    out_type: str = "f32",
    *,
    base: Path | None = None,
    model_name: str | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert an adapter directory, as PEFT saves it, to an adapter file for llama.cpp.

    outfile: as for `convert`, None for the adapter's directory. out_type: f32, bf16, f16, q8_0, or auto for the
    16-bit type the adapter is stored in. base: the checkpoint it was trained on, whose config.json is enough unless
    the adapter changes experts; None for the directory that the adapter names. Raises CheckpointError and its kinds
    for an adapter that llama.cpp cannot apply, OutputError when the file cannot be written. The result's remarks say
    what llama.cpp will ignore.
    """
    check_out_type(out_type)
    base = base or _named_base(adapter)
    opened = open_adapter_file(adapter, base, model_name=model_name)
    model = opened.model
    kind = auto_type(model) if out_type.lower() == "auto" else GgmlType[out_type.upper()]
    for remark in opened.remarks:
        logger.warning("%s", remark)
    return write_converted(
        make_plan(
            model.metadata,
            [Assignment(tensor, float_type(tensor.name, tensor.shape, kind)) for tensor in model.tensors],
        ),
        output_path(adapter, outfile, model, kind),
        kind,
        inputs=[*input_files(adapter), *input_files(base)],
        n_threads=n_threads,
        progress=progress,
        remarks=opened.remarks,
    )


def _named_base(adapter: Path) -> Path:
    named = read_settings(adapter).base_model
    if named is None or not Path(named).is_dir():
        raise CheckpointError(
            f"{adapter} was trained on {named or 'a model that it does not name'}; give the directory of that "
            "checkpoint with --base"
        )
    return Path(named)
