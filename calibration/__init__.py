"""Calibration: run a model over text and record how strongly each input column of its weights is used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma4_quant.calibration.collect import CalibrationResult as CalibrationResult
    from gemma4_quant.calibration.collect import calibrate as calibrate

__all__ = ["CalibrationResult", "calibrate"]


def __getattr__(name: str) -> Any:
    """Load the collection only when it is used: reading an importance file needs no llama.cpp."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gemma4_quant.calibration import collect

    return getattr(collect, name)
