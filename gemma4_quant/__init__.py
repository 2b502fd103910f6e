"""Gemma 4 checkpoints to GGUF: convert, calibrate, quantize, and measure what came out.

    import gemma4_quant as gq

    checkpoint = gq.download("google/gemma-4-E2B-it")  # or the path of a directory
    gguf = gq.convert(checkpoint).path
    gq.calibrate(gguf, [Path("text.txt")], output=Path("imatrix.gguf"))
    small = gq.quantize(gguf, file_type=gq.FileType.Q4_K_M, importance=Path("imatrix.gguf")).path
    print(gq.bench([small], reference=gguf, texts=[Path("other.txt")]))
    print(gq.verify(small, checkpoint).faults)

Importing the package is light: each function loads what it needs when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma4_quant.adapter_conversion import convert_adapter as convert_adapter
    from gemma4_quant.benchmark import bench as bench
    from gemma4_quant.best_quantization import quantize_best as quantize_best
    from gemma4_quant.calibration import calibrate as calibrate
    from gemma4_quant.calibration.collect_moments import calibrate_moments as calibrate_moments
    from gemma4_quant.conversion import convert as convert
    from gemma4_quant.conversion_set import convert_all as convert_all
    from gemma4_quant.errors import Gemma4QuantError as Gemma4QuantError
    from gemma4_quant.ggml import FileType as FileType
    from gemma4_quant.ggml import GgmlType as GgmlType
    from gemma4_quant.hub.downloads import HubOptions as HubOptions
    from gemma4_quant.hub.downloads import download as download
    from gemma4_quant.inspection import inspect as inspect
    from gemma4_quant.projector_conversion import convert_projector as convert_projector
    from gemma4_quant.quantization import quantize as quantize
    from gemma4_quant.verification import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "bench": "gemma4_quant.benchmark",
    "calibrate": "gemma4_quant.calibration",
    "calibrate_moments": "gemma4_quant.calibration.collect_moments",
    "convert": "gemma4_quant.conversion",
    "convert_adapter": "gemma4_quant.adapter_conversion",
    "convert_all": "gemma4_quant.conversion_set",
    "convert_projector": "gemma4_quant.projector_conversion",
    "download": "gemma4_quant.hub.downloads",
    "inspect": "gemma4_quant.inspection",
    "quantize": "gemma4_quant.quantization",
    "quantize_best": "gemma4_quant.best_quantization",
    "verify": "gemma4_quant.verification",
    "FileType": "gemma4_quant.ggml",
    "GgmlType": "gemma4_quant.ggml",
    "Gemma4QuantError": "gemma4_quant.errors",
    "HubOptions": "gemma4_quant.hub.downloads",
}

__all__ = [
    "FileType",
    "Gemma4QuantError",
    "GgmlType",
    "HubOptions",
    "__version__",
    "bench",
    "calibrate",
    "calibrate_moments",
    "convert",
    "convert_adapter",
    "convert_all",
    "convert_projector",
    "download",
    "inspect",
    "quantize",
    "quantize_best",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
