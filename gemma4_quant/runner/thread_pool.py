"""Threads of ggml's CPU backend that stay between the steps of a session.

Without one, ggml builds that do not use OpenMP (Apple's) start threads anew for each decode, which a step of
generation notices. llama.cpp's tools attach one too.
"""

import ctypes
from types import TracebackType
from typing import Any, Self

from gemma4_quant.errors import RunError
from gemma4_quant.runner.devices import cpu_function
from gemma4_quant.runner.llama_library import libraries

MAX_THREADS = 512
"""GGML_MAX_N_THREADS (ggml.h)."""


class _Parameters(ctypes.Structure):
    """`struct ggml_threadpool_params` (ggml.h)."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * MAX_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class ThreadPool:
    """A pool of ggml's threads with its default settings; a context manager. Sessions on it must be closed first."""

    def __init__(self, n_threads: int) -> None:
        """Start threads, of which the caller's is one; raises RunError when that is impossible or fails."""
        if not 1 <= n_threads <= MAX_THREADS:
            raise RunError(f"{n_threads} threads: ggml runs 1 to {MAX_THREADS}")
        parameters = _Parameters()
        libraries().ggml_base.ggml_threadpool_params_init(ctypes.byref(parameters), n_threads)
        make = cpu_function("ggml_threadpool_new", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p))
        self.poll = int(parameters.poll)
        self._free: Any = cpu_function("ggml_threadpool_free", ctypes.CFUNCTYPE(None, ctypes.c_void_p))
        self.handle: Any = make(ctypes.byref(parameters))
        if not self.handle:
            raise RunError(f"ggml cannot start {n_threads} threads")

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End the threads."""
        self.close()

    def close(self) -> None:
        """End the threads."""
        if self.handle:
            self._free(self.handle)
            self.handle = None
