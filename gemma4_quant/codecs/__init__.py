"""Encoders and decoders of tensor types, in one table."""

from collections.abc import Callable, Iterable

import numpy as np

from gemma4_quant.codecs import codebook, floats, k_minimum, k_symmetric, minimum, symmetric
from gemma4_quant.codecs.base import Codec, Effort
from gemma4_quant.codecs.grids import Grid
from gemma4_quant.compiled import is_cached
from gemma4_quant.errors import UnsupportedTypeError
from gemma4_quant.ggml import GgmlType, block_size

CODECS: dict[GgmlType, Codec] = {
    **floats.CODECS,
    **symmetric.CODECS,
    **minimum.CODECS,
    **k_symmetric.CODECS,
    **k_minimum.CODECS,
    **codebook.CODECS,
}

# The kernel of each type that takes longest to compile, and the grid it is compiled for.
_KERNELS: dict[GgmlType, tuple[Callable[..., None], Grid | None]] = {
    GgmlType.BF16: (floats._to_bfloat16, None),
    **{kind: (symmetric._encode, form.grid) for kind, form in symmetric.FORMATS.items()},
    **dict.fromkeys(minimum.CODECS, (minimum._encode, None)),
    **{kind: (k_symmetric._encode, form.grid) for kind, form in k_symmetric.FORMATS.items()},
    **dict.fromkeys(k_minimum.CODECS, (k_minimum._encode, None)),
}

ENCODERS_REVISION = 3
"""To be raised with every change of an encoder's bytes, so that no interrupted file is finished by another one."""

_ready: set[GgmlType] = set()


def codec_for(kind: GgmlType) -> Codec:
    """Return the codec of a tensor type; raises UnsupportedTypeError naming the types that have one."""
    if kind not in CODECS:
        known = ", ".join(sorted(each.name for each in CODECS))
        raise UnsupportedTypeError(f"there is no encoder for {kind.name} yet; there are {known}")
    return CODECS[kind]


def kernels_cached(kinds: Iterable[GgmlType]) -> bool:
    """Tell whether an earlier run left compiled kernels of these types."""
    return all(is_cached(*_KERNELS[kind]) for kind in kinds if kind in _KERNELS and kind not in _ready)


def compile_kernels(kinds: Iterable[GgmlType]) -> None:
    """Have the kernels of these types compiled, or loaded from the cache of an earlier run, by running a block."""
    for kind in kinds:
        if kind in _ready:
            continue
        codec = codec_for(kind)
        n_columns = block_size(kind).n_weights
        rows = np.linspace(-1, 1, n_columns, dtype=np.float32)[None]
        for effort in (Effort.PLAIN, Effort.BALANCED):
            codec.decode(codec.encode(rows, None, effort), n_columns)
        _ready.add(kind)
