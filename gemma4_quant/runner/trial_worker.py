"""The child process of `trial`: loads the metadata and tensor list of a GGUF file, and lays out a computation.

Weights are neither read nor given memory (llama.cpp's `no_alloc`), so that a trial of a large model costs no more
than its vocabulary.
"""

import ctypes
import importlib.util
import json
import os
import sys
import types
from collections.abc import Mapping
from typing import Any

from gemma4_quant.limited_process import serve

_N_CTX = 64
LOAD_MODE_NONE = 0  # LLAMALOAD_MODE_NONE (llama.h): without a map, whose pages would be read ahead


def main() -> None:
    """Serve trials."""
    # ggml starts a debugger for its backtraces, which takes seconds and writes to standard output.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    skip_package_start()
    serve(try_loading)


def skip_package_start() -> None:
    """Let `llama_cpp.llama_cpp` be imported without its package, which imports much that a trial does not need."""
    found = importlib.util.find_spec("llama_cpp")
    if found is not None and found.submodule_search_locations:
        package = types.ModuleType("llama_cpp")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["llama_cpp"] = package


def try_loading(request: Mapping[str, Any]) -> dict[str, str]:
    """Take `{"path": …, "has_context": …}`; answer `{}`, or `{"refused": …}` with llama.cpp's reason.

    has_context: whether the model runs alone, so that a context can be made for it.
    """
    from gemma4_quant.errors import RunError
    from gemma4_quant.runner.llama_library import last_errors, libraries

    try:
        loaded = libraries()
    except RunError as error:
        return {"refused": str(error)}
    llama: Any = loaded.llama
    tell_before_aborting(llama._lib)
    params = llama.llama_model_default_params()
    params.no_alloc, params.load_mode, params.n_gpu_layers = True, LOAD_MODE_NONE, 0
    model = llama.llama_model_load_from_file(os.fsencode(request["path"]), params)
    if not model:
        return {"refused": last_errors()}
    if request["has_context"]:
        settings = llama.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = settings.n_outputs_max = _N_CTX
        settings.n_threads = settings.n_threads_batch = 1
        context = llama.llama_init_from_model(model, settings)
        if not context:
            return {"refused": last_errors()}
        llama.llama_free(context)
    llama.llama_model_free(model)
    return {}


_ABORT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)  # ggml_abort_callback_t (ggml.h)


def _tell(message: bytes) -> None:
    sys.stdout.write(json.dumps({"refused": message.decode(errors="replace")}) + "\n")
    sys.stdout.flush()


_TELL = _ABORT_CALLBACK(_tell)  # kept, because C keeps the pointer


def tell_before_aborting(libllama: Any) -> None:
    """Have ggml say why it aborts.

    The function is looked up through libllama: a wheel may hold libggml-base under several names, each of which the
    loader takes for another library with a callback of its own.
    """
    try:
        set_callback = libllama.ggml_set_abort_callback
    except AttributeError:  # Windows does not look into the libraries that a library uses
        return
    set_callback.argtypes, set_callback.restype = [_ABORT_CALLBACK], ctypes.c_void_p
    set_callback(_TELL)


if __name__ == "__main__":
    main()
