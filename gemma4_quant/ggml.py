"""Facts about GGML tensor types and llama.cpp file types: numbers, names, block sizes.

Numbers follow `enum ggml_type` (ggml.h) and `enum llama_ftype` (llama.h). They stand here, rather than being
taken from the gguf package, so that `--help` starts without importing it; a test holds both tables together.
"""

from dataclasses import dataclass
from enum import IntEnum

from gemma4_quant.errors import ShapeError, UnsupportedTypeError, shortened

ALIGNMENT = 32
"""Bytes; the default of `general.alignment` in a GGUF file."""


class GgmlType(IntEnum):
    """Type of a tensor's data."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42


CACHE_TYPES = tuple(
    GgmlType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")
)
"""Types that a KV cache can have (common/arg.cpp, kv_cache_types)."""


class FileType(IntEnum):
    """What a whole file is called (`general.file_type`); most tensors have the type of that name."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q8_0 = 7
    Q5_0 = 8
    Q5_1 = 9
    Q2_K = 10
    Q3_K_S = 11
    Q3_K_M = 12
    Q3_K_L = 13
    Q4_K_S = 14
    Q4_K_M = 15
    Q5_K_S = 16
    Q5_K_M = 17
    Q6_K = 18
    IQ2_XXS = 19
    IQ2_XS = 20
    Q2_K_S = 21
    IQ3_XS = 22
    IQ3_XXS = 23
    IQ1_S = 24
    IQ4_NL = 25
    IQ3_S = 26
    IQ3_M = 27
    IQ2_S = 28
    IQ2_M = 29
    IQ4_XS = 30
    IQ1_M = 31
    BF16 = 32
    TQ1_0 = 36
    TQ2_0 = 37
    MXFP4_MOE = 38
    NVFP4 = 39
    Q1_0 = 40
    Q2_0 = 41


@dataclass(frozen=True)
class BlockSize:
    """Layout of one block: how many weights it holds and how many bytes it takes."""

    n_weights: int
    n_bytes: int


_BLOCK_SIZES: dict[GgmlType, BlockSize] = {
    kind: BlockSize(*sizes)
    for kind, sizes in {
        GgmlType.F32: (1, 4),
        GgmlType.F16: (1, 2),
        GgmlType.BF16: (1, 2),
        GgmlType.F64: (1, 8),
        GgmlType.I8: (1, 1),
        GgmlType.I16: (1, 2),
        GgmlType.I32: (1, 4),
        GgmlType.I64: (1, 8),
        GgmlType.Q4_0: (32, 18),
        GgmlType.Q4_1: (32, 20),
        GgmlType.Q5_0: (32, 22),
        GgmlType.Q5_1: (32, 24),
        GgmlType.Q8_0: (32, 34),
        GgmlType.Q8_1: (32, 36),
        GgmlType.IQ4_NL: (32, 18),
        GgmlType.MXFP4: (32, 17),
        GgmlType.NVFP4: (64, 36),
        GgmlType.Q1_0: (128, 18),
        GgmlType.Q2_0: (64, 18),
        GgmlType.Q2_K: (256, 84),
        GgmlType.Q3_K: (256, 110),
        GgmlType.Q4_K: (256, 144),
        GgmlType.Q5_K: (256, 176),
        GgmlType.Q6_K: (256, 210),
        GgmlType.Q8_K: (256, 292),
        GgmlType.IQ1_S: (256, 50),
        GgmlType.IQ1_M: (256, 56),
        GgmlType.IQ2_XXS: (256, 66),
        GgmlType.IQ2_XS: (256, 74),
        GgmlType.IQ2_S: (256, 82),
        GgmlType.IQ3_XXS: (256, 98),
        GgmlType.IQ3_S: (256, 110),
        GgmlType.IQ4_XS: (256, 136),
        GgmlType.TQ1_0: (256, 54),
        GgmlType.TQ2_0: (256, 66),
    }.items()
}

_UNQUANTIZED = frozenset(
    {
        GgmlType.F32,
        GgmlType.F16,
        GgmlType.BF16,
        GgmlType.F64,
        GgmlType.I8,
        GgmlType.I16,
        GgmlType.I32,
        GgmlType.I64,
    }
)


def block_size(kind: GgmlType) -> BlockSize:
    """Return weights and bytes of one block of `kind` (ggml-common.h)."""
    return _BLOCK_SIZES[kind]


def bits_per_weight(kind: GgmlType) -> float:
    """Return how many bits a weight takes, scales included."""
    size = block_size(kind)
    return size.n_bytes * 8 / size.n_weights


def is_quantized(kind: GgmlType) -> bool:
    """Tell whether `kind` stores blocks with scales, as `ggml_is_quantized` does."""
    return kind not in _UNQUANTIZED


def row_bytes(kind: GgmlType, n_cols: int) -> int:
    """Return the bytes of a row of `n_cols` weights; raises ShapeError when it is not whole blocks."""
    size = block_size(kind)
    if n_cols % size.n_weights:
        raise ShapeError(
            f"a row of {n_cols} weights is not whole {kind.name} blocks of {size.n_weights}; "
            "choose a type with smaller blocks for this tensor"
        )
    return n_cols // size.n_weights * size.n_bytes


# What llama-quantize accepts beside the plain names (tools/quantize/quantize.cpp, QUANT_OPTIONS).
_FILE_TYPE_ALIASES = {"Q3_K": FileType.Q3_K_M, "Q4_K": FileType.Q4_K_M, "Q5_K": FileType.Q5_K_M}


def parse_file_type(text: str) -> FileType:
    """Read a file type as llama-quantize does: a name in any case, an alias, or a number."""
    name = text.strip().upper()
    if name in _FILE_TYPE_ALIASES:
        return _FILE_TYPE_ALIASES[name]
    if name in FileType.__members__:
        return FileType[name]
    if name.isdecimal() and int(name) in set(FileType):
        return FileType(int(name))
    known = ", ".join(kind.name.lower() for kind in FileType)
    raise UnsupportedTypeError(f"{shortened(text)!r} is not a file type; known are {known}")


def parse_ggml_type(text: str) -> GgmlType:
    """Read a tensor type by name, in any case."""
    name = text.strip().upper()
    if name in GgmlType.__members__:
        return GgmlType[name]
    known = ", ".join(kind.name.lower() for kind in GgmlType)
    raise UnsupportedTypeError(f"{shortened(text)!r} is not a tensor type; known are {known}")
