"""Loading llama.cpp's libraries, and catching what they log."""

import ctypes
import functools
import logging
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from gemma4_quant.errors import RunError

logger = logging.getLogger(__name__)

# enum ggml_log_level (ggml.h); CONT goes on with the line before it.
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUE = 5
_KEPT_ERRORS = 6


class _Log:
    """llama.cpp's log: handed to `logging` quietly, its last errors kept for the message of a failure."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
        self._level = logging.DEBUG

    def receive(self, level: int, text: bytes, _user_data: object) -> None:
        """Take one piece of text; called by llama.cpp from any of its threads."""
        if level != _CONTINUE:
            self._level = _LEVELS.get(level, logging.DEBUG)
        line = text.decode("utf-8", errors="replace").strip()
        if not line or line == ".":
            return
        if self._level == logging.ERROR:
            self.errors.append(line)
        logger.debug("llama.cpp: %s", line)


_log = _Log()


@dataclass(frozen=True)
class Libraries:
    """llama_cpp's Python module, and the libraries as ctypes sees them."""

    llama: ModuleType
    libllama: Any
    ggml: Any
    ggml_base: Any


@functools.cache
def libraries() -> Libraries:
    """Load llama.cpp once, silence it, and start its backends.

    Raises RunError when llama-cpp-python is missing or was built without the libraries this package calls.
    """
    try:
        import llama_cpp.llama_cpp as llama
        from llama_cpp._ctypes_extensions import load_shared_library
    except (ImportError, OSError, RuntimeError) as error:
        raise RunError(
            f"llama-cpp-python cannot be loaded ({error}); install it again: pip install llama-cpp-python"
        ) from error
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH", Path(llama.__file__).parent / "lib"))
    try:
        loaded = Libraries(llama, *(load_shared_library(name, folder) for name in ("llama", "ggml", "ggml-base")))
    except (OSError, RuntimeError) as error:
        raise RunError(f"the libraries of llama-cpp-python cannot be loaded: {error}") from error
    _declare(loaded)
    llama.llama_log_set(log_callback(llama), None)
    llama.llama_backend_init()
    return loaded


@functools.cache
def log_callback(llama: ModuleType) -> Any:
    """Wrap the log receiver for C; cached, because C keeps the pointer for as long as the process runs."""
    return llama.llama_log_callback(_log.receive)


def _declare(loaded: Libraries) -> None:
    """Tell ctypes the signatures (ggml.h, ggml-backend.h) of what this package calls beside llama_cpp's module."""
    pointer, size, number, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_char_p
    ggml, ggml_base = loaded.ggml, loaded.ggml_base
    signatures: list[tuple[Any, str, Any, list[Any]]] = [
        (loaded.libllama, "llama_attach_threadpool", None, [pointer, pointer, pointer]),
        (ggml, "ggml_backend_dev_count", size, []),
        (ggml, "ggml_backend_dev_get", pointer, [size]),
        (ggml, "ggml_backend_reg_count", size, []),
        (ggml, "ggml_backend_reg_get", pointer, [size]),
        (ggml_base, "ggml_commit", text, []),
        (ggml_base, "ggml_threadpool_params_init", None, [pointer, ctypes.c_int]),
        (ggml_base, "ggml_backend_reg_name", text, [pointer]),
        (ggml_base, "ggml_backend_reg_get_proc_address", pointer, [pointer, text]),
        (ggml_base, "ggml_backend_dev_backend_reg", pointer, [pointer]),
        (ggml_base, "ggml_backend_dev_memory", None, [pointer, pointer, pointer]),
        (ggml_base, "ggml_backend_dev_name", text, [pointer]),
        (ggml_base, "ggml_backend_dev_description", text, [pointer]),
        (ggml_base, "ggml_backend_dev_type", ctypes.c_int, [pointer]),
        (ggml_base, "ggml_backend_buffer_is_host", ctypes.c_bool, [pointer]),
        (ggml_base, "ggml_backend_tensor_get", None, [pointer, pointer, size, size]),
        (ggml_base, "ggml_nbytes", size, [pointer]),
        (ggml_base, "ggml_tensor_overhead", size, []),
        (ggml_base, "ggml_op_name", text, [ctypes.c_int]),
        (ggml_base, "ggml_free", None, [pointer]),
        (ggml_base, "ggml_set_name", pointer, [pointer, text]),
        (ggml_base, "ggml_get_data", pointer, [pointer]),
        (ggml_base, "ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, number, number]),
        (ggml_base, "ggml_new_tensor_3d", pointer, [pointer, ctypes.c_int, number, number, number]),
        (ggml_base, "ggml_mul_mat", pointer, [pointer, pointer, pointer]),
        (ggml_base, "ggml_mul_mat_id", pointer, [pointer, pointer, pointer, pointer]),
    ]
    for library, name, result, arguments in signatures:
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise RunError(f"this llama-cpp-python lacks {name}; install version 0.3.36 or later") from error
        function.restype, function.argtypes = result, arguments


def forget_errors() -> None:
    """Drop what llama.cpp has complained about so far; call before an operation that may fail."""
    _log.errors.clear()


def last_errors() -> str:
    """Return the last error lines of llama.cpp as one, or a hint when it said nothing."""
    return "; ".join(_log.errors) or "llama.cpp gave no reason"


def versions() -> dict[str, str]:
    """Return the versions of llama-cpp-python and of the features its ggml was built with."""
    import llama_cpp

    info = libraries().llama.llama_print_system_info().decode(errors="replace").strip()
    return {"llama-cpp-python": llama_cpp.__version__, "system": info}


def source_commit() -> str:
    """Return the commit of llama.cpp's source, abbreviated; `unknown` when the build did not know it."""
    return libraries().ggml_base.ggml_commit().decode(errors="replace").removesuffix("-dirty") or "unknown"
