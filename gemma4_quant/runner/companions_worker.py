"""The child process of `companions`: loads a model, then its projector and drafter on it."""

import os
from collections.abc import Mapping
from typing import Any

from gemma4_quant.errors import RunError
from gemma4_quant.limited_process import serve
from gemma4_quant.runner.trial_worker import LOAD_MODE_NONE, skip_package_start, tell_before_aborting

_N_CTX = 64


def main() -> None:
    """Serve trials."""
    os.environ["GGML_NO_BACKTRACE"] = "1"  # see trial_worker
    skip_package_start()
    serve(try_files)


def try_files(request: Mapping[str, str]) -> dict[str, Any]:
    """Take the paths of `model`, and of `projector` and `drafter` where there are any.

    Answer `{"sees": …, "hears": …}`, or `{"refused": …}` with llama.cpp's reason.
    """
    from gemma4_quant.runner.llama_library import libraries

    try:
        llama: Any = libraries().llama
        tell_before_aborting(llama._lib)
        model = _load(llama, request["model"])
        context = _make_context(llama, model, None)
        sees = hears = False
        if "projector" in request:
            sees, hears = _load_projector(llama, model, request["projector"])
        if "drafter" in request:
            _make_context(llama, _load(llama, request["drafter"]), context)
    except RunError as error:
        return {"refused": str(error)}
    return {"sees": sees, "hears": hears}  # what was loaded ends with the process


def _load(llama: Any, path: str) -> Any:
    params = llama.llama_model_default_params()
    params.no_alloc, params.load_mode, params.n_gpu_layers = True, LOAD_MODE_NONE, 0
    return _not_none(llama.llama_model_load_from_file(os.fsencode(path), params), path)


def _make_context(llama: Any, model: Any, target: Any) -> Any:
    """Make a context, on that of its target for a drafter."""
    settings = llama.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = settings.n_outputs_max = _N_CTX
    settings.n_threads = settings.n_threads_batch = 1
    if target is not None:
        settings.ctx_other = target
    return _not_none(llama.llama_init_from_model(model, settings), "a drafter" if target else "the model")


def _load_projector(llama: Any, model: Any, path: str) -> tuple[bool, bool]:
    """Load the projector, which lays out its computation too; tell whether it takes pictures, and sound."""
    import llama_cpp.mtmd_cpp as mtmd

    from gemma4_quant.runner.llama_library import log_callback

    mtmd.mtmd_log_set(log_callback(llama), None)
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.print_timings, params.n_threads = False, False, 1
    context = _not_none(mtmd.mtmd_init_from_file(os.fsencode(path), model, params), path)
    return bool(mtmd.mtmd_support_vision(context)), bool(mtmd.mtmd_support_audio(context))


def _not_none(handle: Any, what: str) -> Any:
    from gemma4_quant.runner.llama_library import last_errors

    if not handle:
        raise RunError(f"{os.path.basename(what)}: {last_errors()}")
    return handle


if __name__ == "__main__":
    main()
