"""numba's compiler with a type: what it compiles keeps its signature for mypy."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(*, reorder_sums: bool = False, finite: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function of arrays and numbers; it releases the GIL and is cached on disk.

    reorder_sums: let LLVM add floats in lanes, in another order than written. Functions compiled for the first time
    on behalf of such a function inherit the permission.
    finite: all floats are known to be finite, so that minima become single instructions and divisions by the same
    number one reciprocal; sums keep their order, hence results do not depend on where in a tile a row stands.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        flags: set[str] = set()
        if reorder_sums:
            flags |= {"reassoc", "contract"}
        if finite:
            flags |= {"nnan", "ninf", "nsz", "contract", "arcp"}
        kernel: Callable[P, R] = numba.njit(nogil=True, cache=True, fastmath=flags or False)(function)
        return kernel

    return decorate
