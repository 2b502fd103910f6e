"""Mean and deviation of pictures, from the files of the checkpoint's processor."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma4_quant.formats.checkpoint import Checkpoint
from gemma4_quant.formats.json_input import Fields

Colours = tuple[float, float, float]


@dataclass(frozen=True)
class PictureStatistics:
    """What is subtracted from and divides red, green and blue in 0..1. source: file it is from, None for neither."""

    mean: Colours
    deviation: Colours
    source: str | None


DEFAULTS = PictureStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), None)
"""Of transformers' Gemma4ImageProcessor: pictures are not normalised."""


def read_picture_statistics(checkpoint: Checkpoint) -> PictureStatistics:
    """Read image_mean and image_std: processor_config.json wins over preprocessor_config.json, which may lack both.

    Raises ConfigError when one is not three numbers, or the deviation is not above zero.
    """
    settings: dict[str, Any] = {}
    source = None
    for name, inner in (("preprocessor_config.json", "media_proc_cfg"), ("processor_config.json", "image_processor")):
        own = _flattened(Fields(checkpoint.read_json(name) or {}, name), inner)
        if own.get("image_mean") is not None or own.get("image_std") is not None:
            source = name
        settings |= {key: value for key, value in own.items() if value is not None}
    if source is None:
        return DEFAULTS
    fields = Fields(settings, source)
    mean = _colours(fields, "image_mean", DEFAULTS.mean)
    deviation = _colours(fields, "image_std", DEFAULTS.deviation)
    if min(deviation) <= 0:
        fields.fail("image_std", f"is {list(deviation)}; each must be above zero")
    return PictureStatistics(mean, deviation, source)


def _flattened(fields: Fields, inner: str) -> Mapping[str, Any]:
    return {**fields.values, **fields.inner(inner).values} if inner in fields else fields.values


def _colours(fields: Fields, key: str, default: Colours) -> Colours:
    if key not in fields:
        return default
    values = fields.sequence(key)
    if len(values) != 3 or not all(type(value) in (int, float) and _is_float32(value) for value in values):
        fields.fail(key, f"is {str(values)[:60]}, not three numbers")
    return float(values[0]), float(values[1]), float(values[2])


def _is_float32(value: float) -> bool:
    return -1e38 < value < 1e38 and math.isfinite(value)
