"""What `convert` was asked for, carried out or forecast by the function of the library that is meant."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma4_quant.conversion import ConvertResult
    from gemma4_quant.conversion_set import ConvertAllResult
    from gemma4_quant.formats.shards import SplitLimits
    from gemma4_quant.progress import Progress
    from gemma4_quant.writing.forecast import Forecast


class Part(Enum):
    """What of a checkpoint is converted."""

    TEXT_MODEL = 1
    PROJECTOR = 2
    ALL = 3


@dataclass(frozen=True)
class ConversionRequest:
    """The arguments of convert, convert_projector and convert_all, which name what they have in common alike."""

    part: Part
    checkpoint: Path
    outfile: Path | None
    out_type: str
    model_name: str | None
    adapters: Sequence[Path]
    split: "SplitLimits | None"
    drafter: Path | None
    exact_gelu: bool
    n_threads: int | None

    def forecast(self) -> "Forecast":
        """Say what `carry_out` would do."""
        from gemma4_quant.conversion import forecast_conversion
        from gemma4_quant.conversion_set import forecast_all
        from gemma4_quant.projector_conversion import forecast_projector

        if self.part is Part.PROJECTOR:
            return forecast_projector(
                self.checkpoint,
                self.outfile,
                self.out_type,
                model_name=self.model_name,
                adapters=self.adapters,
                exact_gelu=self.exact_gelu,
                n_threads=self.n_threads,
            )
        if self.part is Part.TEXT_MODEL:
            return forecast_conversion(
                self.checkpoint,
                self.outfile,
                self.out_type,
                model_name=self.model_name,
                adapters=self.adapters,
                split=self.split,
                n_threads=self.n_threads,
            )
        return forecast_all(
            self.checkpoint,
            self.outfile,
            self.out_type,
            drafter=self.drafter,
            model_name=self.model_name,
            adapters=self.adapters,
            split=self.split,
            exact_gelu=self.exact_gelu,
            n_threads=self.n_threads,
        )

    def convert_one(self, progress: "Progress") -> "ConvertResult":
        """Convert the text model or the projector."""
        if self.part is Part.PROJECTOR:
            from gemma4_quant.projector_conversion import convert_projector

            return convert_projector(
                self.checkpoint,
                self.outfile,
                self.out_type,
                model_name=self.model_name,
                adapters=self.adapters,
                exact_gelu=self.exact_gelu,
                n_threads=self.n_threads,
                progress=progress,
            )
        from gemma4_quant.conversion import convert

        return convert(
            self.checkpoint,
            self.outfile,
            self.out_type,
            model_name=self.model_name,
            adapters=self.adapters,
            split=self.split,
            n_threads=self.n_threads,
            progress=progress,
        )

    def convert_all(self, progress: "Progress") -> "ConvertAllResult":
        """Convert everything that goes together."""
        from gemma4_quant.conversion_set import convert_all

        return convert_all(
            self.checkpoint,
            self.outfile,
            self.out_type,
            drafter=self.drafter,
            model_name=self.model_name,
            adapters=self.adapters,
            split=self.split,
            exact_gelu=self.exact_gelu,
            n_threads=self.n_threads,
            progress=progress,
        )
