"""Calibration: run a model over text and record how strongly each input column of its weights is used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma4_quant.calibration.collect import CalibrationOptions as CalibrationOptions
    from gemma4_quant.calibration.collect import CalibrationResult as CalibrationResult
    from gemma4_quant.calibration.collect import calibrate as calibrate
    from gemma4_quant.calibration.files import merge_importance as merge_importance
    from gemma4_quant.calibration.sources import TextSource as TextSource

_HOMES = {
    "CalibrationOptions": "collect",
    "CalibrationResult": "collect",
    "TextSource": "sources",
    "calibrate": "collect",
    "merge_importance": "files",
}

__all__ = ["CalibrationOptions", "CalibrationResult", "TextSource", "calibrate", "merge_importance"]


def __getattr__(name: str) -> Any:
    """Load the collection only when it is used: reading an importance file needs no llama.cpp."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
