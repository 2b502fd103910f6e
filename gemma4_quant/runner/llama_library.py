"""Loading llama.cpp's libraries, catching what they log, and naming the devices they can use."""

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

# enum ggml_backend_dev_type (ggml-backend.h)
_GPU_KINDS = frozenset({1, 2})


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
    """llama_cpp's Python module, and its ggml libraries as ctypes sees them."""

    llama: ModuleType
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
        ggml = load_shared_library("ggml", folder)
        ggml_base = load_shared_library("ggml-base", folder)
    except (OSError, RuntimeError) as error:
        raise RunError(f"the ggml libraries of llama-cpp-python cannot be loaded: {error}") from error
    _declare(ggml, ggml_base)
    llama.llama_log_set(log_callback(llama), None)
    llama.llama_backend_init()
    return Libraries(llama, ggml, ggml_base)


@functools.cache
def log_callback(llama: ModuleType) -> Any:
    """Wrap the log receiver for C; cached, because C keeps the pointer for as long as the process runs."""
    return llama.llama_log_callback(_log.receive)


def _declare(ggml: Any, ggml_base: Any) -> None:
    """Tell ctypes the signatures (ggml.h, ggml-backend.h) of what this package calls beside llama.h."""
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    signatures: list[tuple[Any, str, Any, list[Any]]] = [
        (ggml, "ggml_backend_dev_count", size, []),
        (ggml, "ggml_backend_dev_get", pointer, [size]),
        (ggml_base, "ggml_backend_dev_name", ctypes.c_char_p, [pointer]),
        (ggml_base, "ggml_backend_dev_description", ctypes.c_char_p, [pointer]),
        (ggml_base, "ggml_backend_dev_type", ctypes.c_int, [pointer]),
        (ggml_base, "ggml_backend_buffer_is_host", ctypes.c_bool, [pointer]),
        (ggml_base, "ggml_backend_tensor_get", None, [pointer, pointer, size, size]),
        (ggml_base, "ggml_nbytes", size, [pointer]),
        (ggml_base, "ggml_tensor_overhead", size, []),
        (ggml_base, "ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
        (ggml_base, "ggml_free", None, [pointer]),
        (ggml_base, "ggml_set_name", pointer, [pointer, ctypes.c_char_p]),
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


@dataclass(frozen=True)
class Device:
    """A device that llama.cpp can compute on; name such as `CPU` or `Metal`, description from its driver."""

    name: str
    description: str
    is_gpu: bool


def devices() -> tuple[Device, ...]:
    """Return the devices of this build of llama.cpp."""
    loaded = libraries()
    found = []
    for i in range(loaded.ggml.ggml_backend_dev_count()):
        handle = loaded.ggml.ggml_backend_dev_get(i)
        base = loaded.ggml_base
        found.append(
            Device(
                name=base.ggml_backend_dev_name(handle).decode(errors="replace"),
                description=base.ggml_backend_dev_description(handle).decode(errors="replace").strip(),
                is_gpu=base.ggml_backend_dev_type(handle) in _GPU_KINDS,
            )
        )
    return tuple(found)


def device_text(n_gpu_layers: int | None) -> str:
    """Return which devices run a model with that many layers offloaded, such as `CPU (AMD EPYC 9B14)`.

    n_gpu_layers: None means all that fit, as llama.cpp does by default. Without a GPU everything runs on the CPU;
    a warning says so when layers were asked to be offloaded.
    """
    found = devices()
    gpus = [device for device in found if device.is_gpu]
    if n_gpu_layers and n_gpu_layers > 0 and not gpus:
        logger.warning("this build of llama-cpp-python has no GPU device: all layers run on the CPU")
    used = gpus if gpus and n_gpu_layers != 0 else [device for device in found if device.name == "CPU"]
    return (
        ", ".join(f"{d.name} ({d.description})" if d.description not in ("", d.name) else d.name for d in used)
        or "CPU"
    )


def versions() -> dict[str, str]:
    """Return the versions of llama-cpp-python and of the features its ggml was built with."""
    import llama_cpp

    info = libraries().llama.llama_print_system_info().decode(errors="replace").strip()
    return {"llama-cpp-python": llama_cpp.__version__, "system": info}
