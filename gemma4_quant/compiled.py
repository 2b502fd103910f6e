"""numba's compiler with a type: what it compiles keeps its signature for mypy."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(*, reorder_sums: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function of arrays and numbers; it releases the GIL and is cached on disk.

    reorder_sums: let LLVM add floats in lanes, in another order than written. Functions compiled for the first time
    on behalf of such a function inherit the permission.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        flags = {"reassoc", "contract"} if reorder_sums else False
        kernel: Callable[P, R] = numba.njit(nogil=True, cache=True, fastmath=flags)(function)
        return kernel

    return decorate
