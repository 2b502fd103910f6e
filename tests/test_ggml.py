"""Numbers, names and block sizes of types, against the gguf package and libggml."""

import ctypes
import re

import gguf
import llama_cpp
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_quant.errors import ShapeError, UnsupportedTypeError
from gemma4_quant.ggml import (
    ALIGNMENT,
    FileType,
    GgmlType,
    block_size,
    is_quantized,
    parse_file_type,
    parse_ggml_type,
    row_bytes,
)
from gemma4_quant.runner.llama_library import libraries


class _TypeTraits(ctypes.Structure):
    """The start of `struct ggml_type_traits` (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
    )


def ggml_traits(kind: GgmlType) -> _TypeTraits:
    function = libraries().ggml_base.ggml_get_type_traits
    function.restype, function.argtypes = ctypes.POINTER(_TypeTraits), [ctypes.c_int]
    return function(int(kind)).contents


def test_types_have_the_numbers_of_the_gguf_package() -> None:
    known = {kind.name: kind.value for kind in GGMLQuantizationType}
    shared = {kind.name for kind in GgmlType} & set(known)
    assert {name: GgmlType[name].value for name in shared} == {name: known[name] for name in shared}
    assert set(known) <= {kind.name for kind in GgmlType}


def test_file_types_have_the_numbers_of_the_gguf_package() -> None:
    known = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): kind.value for kind in LlamaFileType}
    for kind in FileType:
        assert known.get(kind.name, kind.value) == kind.value, kind
    assert set(known) - {kind.name for kind in FileType} <= {"GUESSED"}


def test_file_types_have_the_numbers_of_llama_cpp() -> None:
    for kind in FileType:
        prefix = "LLAMA_FTYPE_ALL_" if kind is FileType.F32 else "LLAMA_FTYPE_MOSTLY_"
        assert getattr(llama_cpp, prefix + kind.name) == kind, kind


@pytest.mark.parametrize("kind", GgmlType)
def test_block_sizes_are_those_of_the_gguf_package_and_libggml(kind: GgmlType) -> None:
    size, traits = block_size(kind), ggml_traits(kind)
    assert traits.type_name.decode().upper() == kind.name
    assert (size.n_weights, size.n_bytes) == (traits.blck_size, traits.type_size)
    assert is_quantized(kind) == traits.is_quantized
    # The gguf package still has the float32 sums that block_q8_1 had once; Q8_1 never occurs in files.
    if kind.name in GGMLQuantizationType.__members__ and kind is not GgmlType.Q8_1:
        assert (size.n_weights, size.n_bytes) == GGML_QUANT_SIZES[GGMLQuantizationType[kind.name]]


def test_alignment_is_the_default_of_the_format() -> None:
    assert ALIGNMENT == gguf.GGUF_DEFAULT_ALIGNMENT


@settings(deadline=None)  # the first example loads libggml
@given(kind=st.sampled_from(GgmlType), n_cols=st.integers(1, 100_000))
def test_row_bytes_are_those_of_libggml_or_refused(kind: GgmlType, n_cols: int) -> None:
    traits = ggml_traits(kind)
    if n_cols % traits.blck_size:
        with pytest.raises(ShapeError, match=f"a row of {n_cols} weights"):
            row_bytes(kind, n_cols)
    else:
        function = libraries().ggml_base.ggml_row_size
        function.restype, function.argtypes = ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]
        assert row_bytes(kind, n_cols) == function(int(kind), n_cols)


@pytest.mark.parametrize("kind", FileType)
def test_file_types_are_read_by_name_in_any_case_and_by_number(kind: FileType) -> None:
    assert parse_file_type(kind.name.lower()) is kind
    assert parse_file_type(f" {kind.name.title()} ") is kind
    assert parse_file_type(str(kind.value)) is kind


@pytest.mark.parametrize(
    ("alias", "kind"), [("q3_k", FileType.Q3_K_M), ("Q4_K", FileType.Q4_K_M), ("q5_K", FileType.Q5_K_M)]
)
def test_file_types_have_the_aliases_of_llama_quantize(alias: str, kind: FileType) -> None:
    assert parse_file_type(alias) is kind


@pytest.mark.parametrize("text", ["", "q4", "q4_k_xl", "4", "-1", "1.0", "33", "99999", "²", "copy", "q8_k"])
def test_other_file_types_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UnsupportedTypeError, match=rf"^{re.escape(repr(text))} is not a file type; .*\bq4_k_m\b"):
        parse_file_type(text)


@pytest.mark.parametrize("kind", GgmlType)
def test_tensor_types_are_read_by_name_in_any_case(kind: GgmlType) -> None:
    assert parse_ggml_type(f" {kind.name.lower()}") is kind


@pytest.mark.parametrize("text", ["", "q4_k_m", "2", "float"])
def test_other_tensor_types_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedTypeError, match=rf"^{re.escape(repr(text))} is not a tensor type"):
        parse_ggml_type(text)
