"""Linear layers of the encoders, whose input and output may be clipped (transformers' Gemma4ClippableLinear)."""

import re
from collections.abc import Iterator

from gemma4_quant.converters.places import Place
from gemma4_quant.converters.projector.rows import limit

LIMITS = ("input_min", "input_max", "output_min", "output_max")

LIMIT_NAME = re.compile(rf"\.(?:{'|'.join(LIMITS)})$")


def is_limit(tensor_name: str) -> bool:
    """Tell whether a tensor, by its name in checkpoint or GGUF, is a limit of a clipped layer."""
    return LIMIT_NAME.search(tensor_name) is not None


def linear_places(name: str, gguf: str, shape: tuple[int, int], *, is_clipped: bool) -> Iterator[Place]:
    """Yield the places of one layer's matrix and limits."""
    yield Place(f"{name}.linear.weight", f"{gguf}.weight", shape)
    for which in LIMITS if is_clipped else ():
        yield Place(f"{name}.{which}", f"{gguf}.{which}", (), transform=limit)
