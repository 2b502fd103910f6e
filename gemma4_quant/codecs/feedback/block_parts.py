"""Blocks taken apart into codes and the numbers that scale them, and put together again, for all scalar types alike.

A weight is d·s·code − dmin·q: d and dmin ("supers") belong to a unit, s and q ("subs") to a group of columns; several
groups make a unit in K types, one elsewhere, with s = q = 1. Types without minima have dmin = 0.
"""

from typing import NamedTuple

import numpy as np

from gemma4_quant.codecs import k_minimum, k_symmetric, minimum, symmetric
from gemma4_quant.codecs.grids import Grid, uniform
from gemma4_quant.codecs.half import LARGEST, half_bits
from gemma4_quant.codecs.k_blocks import (
    pack_minimum,
    pack_symmetric,
    super_scale_at,
    super_scales_at,
    unpack_minimum,
    unpack_symmetric,
)
from gemma4_quant.codecs.lanes import Array
from gemma4_quant.codecs.packing import get_half, put_half
from gemma4_quant.codecs.small_floats import HALF, get_scale, put_scale
from gemma4_quant.codecs.symmetric_blocks import pack_codes, scales_at, unpack_codes
from gemma4_quant.compiled import compiled
from gemma4_quant.ggml import GgmlType, block_size

_SCALES, _PAIRS, _SUPERS, _SUPER_PAIRS = range(4)


class BlockForm(NamedTuple):
    """How a type's blocks are made, as compiled code takes it.

    kind: number of the type. family: which layout. n_weights, n_bytes: of a block. size: columns of a group.
    per_unit: groups of a unit. scale_form: of d (small_floats). low_s to high_s: range of s; high_q: of q from zero.
    """

    kind: int
    family: int
    n_weights: int
    n_bytes: int
    size: int
    per_unit: int
    scale_form: int
    low_s: np.float32
    high_s: np.float32
    high_q: np.float32


class ScalarType(NamedTuple):
    """A type that error feedback can encode: its blocks, its codes, the largest weight its scales can serve."""

    form: BlockForm
    grid: Grid
    largest: float


def _form(kind: GgmlType, family: int, size: int, per_unit: int, scale_form: int, *ranges: float) -> BlockForm:
    block = block_size(kind)
    low_s, high_s, high_q = (np.float32(each) for each in ranges)
    return BlockForm(
        int(kind), family, block.n_weights, block.n_bytes, size, per_unit, scale_form, low_s, high_s, high_q
    )


def _scalar_types() -> dict[GgmlType, ScalarType]:
    """Collect the types from the tables of their encoders."""
    found = {}
    for kind, simple in symmetric.FORMATS.items():
        form = _form(kind, _SCALES, simple.n_weights, 1, simple.scale, 1, 1, 0)
        found[kind] = ScalarType(form, simple.grid, simple.largest)
    for kind, high in minimum.HIGHEST.items():
        found[kind] = ScalarType(_form(kind, _PAIRS, 32, 1, HALF, 1, 1, 1), uniform(0, high), LARGEST / 2)
    for kind, nested in k_symmetric.FORMATS.items():
        subs = nested.sub_scales
        form = _form(
            kind, _SUPERS, nested.n_weights, 256 // nested.n_weights, HALF, float(subs.low), float(subs.high), 0
        )
        found[kind] = ScalarType(form, nested.grid, LARGEST)
    for kind, pair in k_minimum.FORMATS.items():
        form = _form(kind, _SUPER_PAIRS, pair.n_weights, 256 // pair.n_weights, HALF, 0, pair.top, pair.top)
        found[kind] = ScalarType(form, uniform(0, pair.high), LARGEST / 2)
    return found


SCALAR_TYPES = _scalar_types()


class Parts(NamedTuple):
    """Rows of blocks taken apart.

    codes (n_rows, n_cols) int8; supers (2, n_rows, n_units) float32, d and dmin; subs (2, n_rows, n_groups) float32,
    s and q.
    """

    codes: Array
    supers: Array
    subs: Array


def empty_parts(n_rows: int, n_columns: int, form: BlockForm) -> Parts:
    """Return room for the parts of rows."""
    n_groups = n_columns // form.size
    return Parts(
        np.empty((n_rows, n_columns), np.int8),
        np.zeros((2, n_rows, n_groups // form.per_unit), np.float32),
        np.ones((2, n_rows, n_groups), np.float32),
    )


@compiled()
def has_offset(form: BlockForm) -> bool:
    """Tell whether a type has minima."""
    return form.family in (_PAIRS, _SUPER_PAIRS)


@compiled()
def read_blocks(data: Array, form: BlockForm, first: int, parts: Parts) -> None:
    """Take rows of blocks (n_rows, n_bytes) uint8 apart; they start at column `first` of parts."""
    n_units, n_groups = form.n_weights // (form.size * form.per_unit), form.n_weights // form.size
    for row in range(data.shape[0]):
        for number in range(data.shape[1] // form.n_bytes):
            source = data[row, number * form.n_bytes : (number + 1) * form.n_bytes]
            block = first // form.n_weights + number
            codes = parts.codes[row, block * form.n_weights : (block + 1) * form.n_weights]
            d = parts.supers[0, row, block * n_units : (block + 1) * n_units]
            dmin = parts.supers[1, row, block * n_units : (block + 1) * n_units]
            s = parts.subs[0, row, block * n_groups : (block + 1) * n_groups]
            q = parts.subs[1, row, block * n_groups : (block + 1) * n_groups]
            if form.family == _SCALES:
                unpack_codes(form.kind, source, codes)
                scale_bytes = 2 if form.scale_form == HALF else 1
                for j in range(n_units):
                    d[j] = get_scale(source[scales_at(form.kind) + j * scale_bytes :], form.scale_form)
            elif form.family == _PAIRS:
                minimum.unpack_codes(source, codes)
                d[0], dmin[0] = get_half(source), -get_half(source[2:])
            elif form.family == _SUPERS:
                unpack_symmetric(form.kind, source, codes, s)
                d[0] = get_half(source[super_scale_at(form.kind) :])
            else:
                unpack_minimum(form.kind, source, codes, s, q)
                at = super_scales_at(form.kind)
                d[0], dmin[0] = get_half(source[at:]), get_half(source[at + 2 :])


@compiled()
def write_blocks(parts: Parts, form: BlockForm, data: Array) -> None:
    """Put rows of blocks together again; all bytes of data (n_rows, row_bytes) uint8 are written."""
    n_units, n_groups = form.n_weights // (form.size * form.per_unit), form.n_weights // form.size
    codes = np.empty(form.n_weights, np.int8)
    for row in range(data.shape[0]):
        for block in range(data.shape[1] // form.n_bytes):
            target = data[row, block * form.n_bytes : (block + 1) * form.n_bytes]
            codes[:] = parts.codes[row, block * form.n_weights : (block + 1) * form.n_weights]
            d = parts.supers[0, row, block * n_units : (block + 1) * n_units]
            dmin = parts.supers[1, row, block * n_units : (block + 1) * n_units]
            s = parts.subs[0, row, block * n_groups : (block + 1) * n_groups]
            q = parts.subs[1, row, block * n_groups : (block + 1) * n_groups]
            if form.family == _SCALES:
                pack_codes(form.kind, codes, target)
                scale_bytes = 2 if form.scale_form == HALF else 1
                for j in range(n_units):
                    put_scale(d[j], form.scale_form, target[scales_at(form.kind) + j * scale_bytes :])
            elif form.family == _PAIRS:
                minimum.pack_codes(codes, target)
                put_half(half_bits(d[0]), target)
                put_half(half_bits(-dmin[0]), target[2:])
            elif form.family == _SUPERS:
                pack_symmetric(form.kind, codes, s, target)
                put_half(half_bits(d[0]), target[super_scale_at(form.kind) :])
            else:
                pack_minimum(form.kind, codes, s, q, target)
                at = super_scales_at(form.kind)
                put_half(half_bits(d[0]), target[at:])
                put_half(half_bits(dmin[0]), target[at + 2 :])
