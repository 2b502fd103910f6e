"""numba's compiler with a type: what it compiles keeps its signature for mypy, and its cache never goes stale."""

import functools
import hashlib
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")

FINITE = ("nnan", "ninf", "nsz", "contract")
"""What LLVM may assume where all floats are finite, and that it may fuse a product with a sum.

Not `arcp`: LLVM then takes a processor's own estimate of a reciprocal for a division, in which processors differ.
"""

logger = logging.getLogger(__name__)


def compiled(*, reorder_sums: bool = False, finite: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function of arrays, numbers and named tuples; it releases the GIL and is cached on disk.

    reorder_sums: let LLVM add floats in lanes, in another order than written. Functions compiled for the first time
    on behalf of such a function inherit the permission.
    finite: all floats are known to be finite, so that minima become single instructions; sums keep their order,
    hence results do not depend on where in a tile a row stands.
    """
    flags: set[str] = set()
    if reorder_sums:
        flags |= {"reassoc", "contract"}
    if finite:
        flags |= set(FINITE)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        options: dict[str, Any] = {"nogil": True, "fastmath": flags or False}
        try:
            kernel = numba.njit(cache=True, **options)(function)
        except RuntimeError as error:  # neither the package's folder nor the user's cache can be written
            logger.debug("%s is compiled anew in every run: %s", function.__qualname__, error)
            kernel = numba.njit(**options)(function)
        if (cache := _cache_file(kernel)) is not None:
            cache._source_stamp = _digest(Path(inspect.getfile(function)).parent)
        return kernel  # type: ignore[no-any-return]

    return decorate


def is_cached(kernel: Callable[..., object], argument: object | None = None) -> bool:
    """Tell whether an earlier run left a compiled function on disk, for that argument among others if given."""
    cache = _cache_file(kernel)
    signatures = [] if cache is None else [key[0] for key in cache._load_index()]
    return any(argument is None or numba.typeof(argument) in signature for signature in signatures)


def _cache_file(kernel: Any) -> Any:
    """Return numba's index of a kernel on disk; None for functions that are not cached (or not compiled at all)."""
    return getattr(getattr(kernel, "_cache", None), "_cache_file", None)


@functools.cache
def _digest(folder: Path) -> str:
    """Return a hash of all sources in a folder, in those around it inside the package, and of this file.

    It stands in for the time and size of the kernel's own file, which numba compares by default: a kernel contains
    those it calls from the files beside and above it, and tools that copy files preserve times.
    """
    package = Path(__file__).parent
    folders = [folder, *(each for each in folder.parents if package in each.parents)]
    hasher = hashlib.sha256()
    for source in [Path(__file__), *(each for around in folders for each in sorted(around.glob("*.py")))]:
        content = source.read_bytes()
        hasher.update(f"{source.name} {len(content)}\n".encode() + content)
    return hasher.hexdigest()
