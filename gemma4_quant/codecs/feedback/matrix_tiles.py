"""Matrix products whose rows do not depend on each other, at the speed of BLAS.

A BLAS picks other kernels for other numbers of rows, and rounds a row's sums differently by where it stands among
the others (OpenBLAS 0.3.31 does); the bytes of a file would then depend on tiles and threads. Here every element is
one chain of fused multiply-adds in the order of the columns. Six rows by sixteen columns of sums stay in registers,
which compiled loops over arrays cannot express, hence the instructions are written out for LLVM. The right-hand
matrix is stored in strips of sixteen columns, so that it is read from its start to its end.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gemma4_quant.codecs.lanes import Array
from gemma4_quant.compiled import compiled

STRIP = 16
"""Columns of a strip."""

_ROWS = 6
"""Rows of a tile: 12 vectors of sums, 2 of the strip and 1 of the left side fill the 16 registers of AVX2."""

_VECTOR = 8
_I64 = ir.IntType(64)
_FLOAT = ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, _VECTOR)
_FLOAT_BYTES = 4


@compiled()
def add_product(left: Array, packed: Array, at: int, out: Array) -> None:
    """Add left @ strip to out.

    left: (n_rows, n) float32, contiguous in rows. packed: (size,) float32, which holds the strip (n, STRIP) row by
    row from `at`. out: (n_rows, STRIP) float32, contiguous in rows.
    """
    n_rows, n = left.shape
    strip = packed[at:].ctypes.data
    left_step, out_step = left.strides[0], out.strides[0]
    left_at, out_at = left.ctypes.data, out.ctypes.data
    n_whole = n_rows - n_rows % _ROWS
    for row in range(0, n_whole, _ROWS):
        _add_six_rows(left_at + row * left_step, left_step, strip, n, out_at + row * out_step, out_step)
    for row in range(n_whole, n_rows):
        _add_row(left_at + row * left_step, left_step, strip, n, out_at + row * out_step, out_step)


def _tile(n_rows: int) -> Any:
    """Return the intrinsic (left, left_step, strip, n, out, out_step) for a number of rows; addresses and bytes."""

    def declare(context: Any, *arguments: Any) -> Any:
        del context
        return types.void(*arguments), lambda _, builder, __, values: _emit(builder, n_rows, *values)

    def typed(
        context: Any, left: Any, left_step: Any, strip: Any, n: Any, out: Any, out_step: Any
    ) -> Any:  # numba matches arguments by name
        return declare(context, left, left_step, strip, n, out, out_step)

    return intrinsic(typed)


def _emit(
    builder: Any, n_rows: int, left: Any, left_step: Any, strip: Any, n: Any, out: Any, out_step: Any
) -> ir.Constant:
    """Write the instructions: load the sums, loop over n, store the sums."""
    vectors = [(row, part) for row in range(n_rows) for part in range(STRIP // _VECTOR)]
    places = [_address(builder, out, (out_step, row), part * _VECTOR) for row, part in vectors]
    entry = builder.block
    loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
    start = [_load(builder, place) for place in places]
    builder.cbranch(builder.icmp_signed(">", n, _I64(0)), loop, done)

    builder.position_at_end(loop)
    i = builder.phi(_I64)
    sums = [builder.phi(_FLOATS) for _ in vectors]
    offset = builder.mul(i, _I64(STRIP * _FLOAT_BYTES))
    right = [
        _load(builder, _address(builder, builder.add(strip, offset), None, part * _VECTOR))
        for part in range(STRIP // _VECTOR)
    ]
    shift = builder.mul(i, _I64(_FLOAT_BYTES))
    factors = [_broadcast(builder, builder.add(left, shift), (left_step, row)) for row in range(n_rows)]
    multiply_add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fmuladd.v{_VECTOR}f32"
    )
    added = [
        builder.call(multiply_add, [factors[row], right[part], total])
        for (row, part), total in zip(vectors, sums, strict=True)
    ]
    following = builder.add(i, _I64(1))
    builder.cbranch(builder.icmp_signed("<", following, n), loop, done)
    i.add_incoming(_I64(0), entry)
    i.add_incoming(following, loop)
    for total, first, latest in zip(sums, start, added, strict=True):
        total.add_incoming(first, entry)
        total.add_incoming(latest, loop)

    builder.position_at_end(done)
    results = [builder.phi(_FLOATS) for _ in vectors]
    for result, first, latest in zip(results, start, added, strict=True):
        result.add_incoming(first, entry)
        result.add_incoming(latest, loop)
    for result, place in zip(results, places, strict=True):
        builder.store(result, place).align = _FLOAT_BYTES
    return cgutils.get_null_value(ir.IntType(8).as_pointer())


def _address(builder: Any, base: Any, step: tuple[Any, int] | None, n_floats: int) -> Any:
    """Return base + step · rows + floats as a pointer to a vector."""
    if step is not None:
        base = builder.add(base, builder.mul(step[0], _I64(step[1])))
    return builder.inttoptr(builder.add(base, _I64(n_floats * _FLOAT_BYTES)), _FLOATS.as_pointer())


def _load(builder: Any, place: Any) -> Any:
    value = builder.load(place)
    value.align = _FLOAT_BYTES
    return value


def _broadcast(builder: Any, base: Any, step: tuple[Any, int]) -> Any:
    """Return the float at base + step · rows in all places of a vector."""
    place = builder.inttoptr(builder.add(base, builder.mul(step[0], _I64(step[1]))), _FLOAT.as_pointer())
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, builder.load(place), ir.IntType(32)(0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), _VECTOR), [0] * _VECTOR)
    )


_add_six_rows = _tile(_ROWS)
_add_row = _tile(1)


@compiled()
def packed_strip(matrix: Array, first_row: int, n_rows: int, column: int, packed: Array, at: int) -> None:
    """Copy matrix[first_row : first_row + n_rows, column : column + STRIP] to packed[at : at + n_rows · STRIP]."""
    for i in range(n_rows):
        for k in range(STRIP):
            packed[at + i * STRIP + k] = np.float32(matrix[first_row + i, column + k])
