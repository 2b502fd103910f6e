"""How many threads numpy's BLAS uses: more than there are idle cores slow small products down many times."""

import functools
from contextlib import AbstractContextManager
from typing import Any

import numpy as np  # noqa: F401 - its BLAS must be loaded before it can be found
from threadpoolctl import ThreadpoolController


@functools.cache
def _controller() -> Any:
    return ThreadpoolController()


def blas_threads(limit: int) -> AbstractContextManager[object]:
    """Let BLAS use at most `limit` threads within the context, in the whole process."""
    manager: AbstractContextManager[object] = _controller().limit(limits=limit, user_api="blas")
    return manager
