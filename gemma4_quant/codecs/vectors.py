"""Vectors of float32 that stay in registers, for the innermost loops of encoders.

LLVM turns a loop over lanes into vector instructions, but writes the lanes' sums to memory and reads them again for
every column. A vector is a value of numba's instead: kernels load sixteen lanes, keep their sums through all columns,
and store them once, which halves the time of a search. LLVM splits a vector into what the processor has.

Vectors know +, -, * and / with each other. No operation reorders sums, so results are those of a plain loop.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic, models, register_model
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from gemma4_quant.compiled import FINITE, compiled

WIDTH = 16
"""Lanes of a vector: two registers of AVX2, so that additions of one need not wait for those before."""


class VectorType(types.Type):
    """WIDTH float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{WIDTH}")


class _MaskType(types.Type):
    """WIDTH truth values."""

    def __init__(self) -> None:
        super().__init__(name=f"mask{WIDTH}")


_VECTOR, _MASK = VectorType(), _MaskType()
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_BITS = ir.VectorType(ir.IntType(1), WIDTH)


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


@register_model(_MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _BITS)


def _declare_operator(function: Callable[..., Any], instruction: str) -> None:
    class Template(AbstractTemplate):
        def generic(self, arguments: Any, _keywords: Any) -> Any:
            return signature(_VECTOR, *arguments) if arguments == (_VECTOR, _VECTOR) else None

    infer_global(function)(Template)

    def lower(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*arguments, flags=FINITE)

    lower_builtin(function, VectorType, VectorType)(lower)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _declare_operator(_function, _instruction)


def _operation(implementation: Callable[..., Any]) -> Any:
    """Make an operation of what numba calls with types, and returns its signature and how to write it in LLVM."""
    return intrinsic(implementation)


def _elementwise(name: str, n_arguments: int) -> Any:
    """Return LLVM's intrinsic function of that name for vectors."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * n_arguments)

    def lower(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32")
        return builder.call(function, arguments, fastmath=FINITE)

    if n_arguments == 1:
        return _operation(lambda _typing, a: (_VECTOR(a), lower))
    return _operation(lambda _typing, a, b: (_VECTOR(a, b), lower))


nearest_whole = _elementwise("rint", 1)
"""Round to whole numbers, halves to even."""

smaller = _elementwise("minnum", 2)
larger = _elementwise("maxnum", 2)


@_operation
def spread(_typing: Any, value: Any) -> Any:
    """Return a vector of one number."""

    def lower(context: Any, builder: Any, called: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[0], called.args[0], types.float32)
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(
            first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
        )

    return _VECTOR(value), lower


@_operation
def load(_typing: Any, array: Any, start: Any) -> Any:
    """Return array[start : start + WIDTH] of a contiguous float32 array."""

    def lower(context: Any, builder: Any, called: Any, arguments: Any) -> Any:
        loaded = builder.load(_pointer(context, builder, called, arguments))
        loaded.align = 4
        return loaded

    return _VECTOR(array, start), lower


@_operation
def store(_typing: Any, array: Any, start: Any, vector: Any) -> Any:
    """Write a vector to array[start : start + WIDTH] of a contiguous float32 array."""

    def lower(context: Any, builder: Any, called: Any, arguments: Any) -> Any:
        stored = builder.store(arguments[2], _pointer(context, builder, called, arguments))
        stored.align = 4
        return context.get_dummy_value()

    return types.void(array, start, vector), lower


def _pointer(context: Any, builder: Any, called: Any, arguments: Any) -> Any:
    array = context.make_array(called.args[0])(context, builder, arguments[0])
    start = context.cast(builder, arguments[1], called.args[1], types.intp)
    pointer = cgutils.get_item_pointer(context, builder, called.args[0], array, [start])
    return builder.bitcast(pointer, _FLOATS.as_pointer())


@_operation
def less(_typing: Any, a: Any, b: Any) -> Any:
    """Return where a < b."""

    def lower(_context: Any, builder: Any, _called: Any, arguments: Any) -> Any:
        return builder.fcmp_ordered("<", *arguments, flags=FINITE)

    return _MASK(a, b), lower


@_operation
def differ(_typing: Any, a: Any, b: Any) -> Any:
    """Return where a ≠ b."""

    def lower(_context: Any, builder: Any, _called: Any, arguments: Any) -> Any:
        return builder.fcmp_ordered("!=", *arguments, flags=FINITE)

    return _MASK(a, b), lower


@_operation
def both(_typing: Any, a: Any, b: Any) -> Any:
    """Return where both masks are true."""
    return _MASK(a, b), lambda _context, builder, _called, arguments: builder.and_(*arguments)


@_operation
def where(_typing: Any, mask: Any, a: Any, b: Any) -> Any:
    """Return a where the mask is true, b elsewhere."""
    return _VECTOR(mask, a, b), lambda _context, builder, _called, arguments: builder.select(*arguments)


Vector = Any
"""A vector in a kernel; numba knows its type."""


@compiled(finite=True)
def vector_inverse(values: Vector) -> Any:
    """Return 1 / value, and 0 where the value is 0."""
    zero, one = spread(np.float32(0)), spread(np.float32(1))
    usable = differ(values, zero)
    return where(usable, one / where(usable, values, one), zero)
