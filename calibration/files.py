"""Importance files as a user handles them: written in either format, added up."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gemma4_quant.calibration.coverage import ENOUGH_TOKENS, ExpertCoverage, expert_coverage
from gemma4_quant.calibration.importance import Importance, write_importance
from gemma4_quant.calibration.legacy_dat import write_legacy
from gemma4_quant.calibration.merging import merge_files
from gemma4_quant.writing.destination import check_destination


class OutputFormat(StrEnum):
    """How an importance file is written: llama.cpp's GGUF layout, or its older one (see legacy_dat)."""

    GGUF = "gguf"
    DAT = "dat"


@dataclass(frozen=True)
class MergeResult:
    """What `merge_importance` wrote: how many weights and chunks, and how many tokens reached experts."""

    path: Path
    files: tuple[Path, ...]
    n_tensors: int
    n_chunks: int
    n_ctx: int
    min_expert_tokens: int
    experts: tuple[ExpertCoverage, ...]


def write(path: Path, importance: Importance, output_format: OutputFormat) -> None:
    """Write an importance file in one of the formats; see write_importance and write_legacy."""
    {OutputFormat.GGUF: write_importance, OutputFormat.DAT: write_legacy}[output_format](path, importance)


def merge_importance(
    files: Sequence[Path],
    output: Path,
    *,
    output_format: OutputFormat = OutputFormat.GGUF,
    min_expert_tokens: int = ENOUGH_TOKENS,
) -> MergeResult:
    """Add up importance files of one model, such as parts of a calibration that several machines made.

    Of one file it makes the same in another format. min_expert_tokens: what coverage is measured by. Raises
    ImportanceError when a file is damaged or of another model, InputError when one is named twice, OutputError when
    the result cannot be written.
    """
    check_destination(output, files)
    importance = merge_files(files)
    write(output, importance, output_format)
    return MergeResult(
        path=output,
        files=tuple(files),
        n_tensors=len(importance.entries),
        n_chunks=importance.chunk_count,
        n_ctx=importance.chunk_size,
        min_expert_tokens=min_expert_tokens,
        experts=expert_coverage(importance.counts, min_expert_tokens),
    )
