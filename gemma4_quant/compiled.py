"""numba's compiler with a type: what it compiles keeps its signature for mypy."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
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
        if hasattr(kernel, "stats"):  # absent when NUMBA_DISABLE_JIT leaves the function as it is
            _drop_stale(Path(kernel.stats.cache_path), Path(inspect.getfile(function)).parent)
        return kernel

    return decorate


@functools.cache
def _drop_stale(cache: Path, sources: Path) -> None:
    """Forget kernels older than any source in their folder.

    numba only compares a kernel with its own file, but a kernel contains those it calls from the files beside it.
    """
    newest = max(source.stat().st_mtime for source in sources.glob("*.py"))
    for index in cache.glob("*.nbi"):
        with contextlib.suppress(OSError):  # another process may be doing the same
            if index.stat().st_mtime < newest:
                index.unlink()
