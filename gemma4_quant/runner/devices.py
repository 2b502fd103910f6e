"""The devices that this build of llama.cpp can compute on: what they are called, and how much memory they have."""

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gemma4_quant.errors import InputError
from gemma4_quant.runner.llama_library import libraries

logger = logging.getLogger(__name__)

# enum ggml_backend_dev_type (ggml-backend.h); an accelerator such as BLAS works beside the CPU.
_CPU, _GPU_KINDS = 0, frozenset({1, 2})


@dataclass(frozen=True)
class Device:
    """A device that llama.cpp can compute on.

    name: such as `CPU`, `Metal` or `CUDA0`, by which it is chosen. description: from its driver. is_gpu: whether
    layers can be offloaded to it. is_cpu: whether it is the processor itself; neither is an accelerator such as BLAS.
    total_bytes, free_bytes: its memory; 0 where the driver does not say.
    """

    name: str
    description: str
    is_gpu: bool
    is_cpu: bool
    total_bytes: int
    free_bytes: int


def devices() -> tuple[Device, ...]:
    """Return the devices of this build of llama.cpp."""
    return tuple(_described(handle) for handle in _handles())


def chosen_devices(names: Sequence[str] | None) -> tuple[Device, ...]:
    """Return the devices of these names; all GPUs for None.

    Raises InputError for a name that no device has, and for the CPU, which is never chosen but used for the rest.
    """
    found = devices()
    if names is None:
        return tuple(device for device in found if device.is_gpu)
    eligible = {device.name.lower(): device for device in found if not device.is_cpu}
    wrong = [name for name in names if name.lower() not in eligible]
    if wrong:
        known = ", ".join(device.name for device in eligible.values()) or "none"
        raise InputError(
            f"no device {', '.join(wrong)} to offload to; this build of llama-cpp-python has: {known} "
            "(see bench --list-devices)"
        )
    return tuple(eligible[name.lower()] for name in names)


def device_array(names: Sequence[str]) -> "ctypes.Array[ctypes.c_void_p]":
    """Return handles of the devices of these names, ended by a null pointer, as llama_model_params wants them.

    Raises InputError as `chosen_devices` does.
    """
    chosen = [device.name for device in chosen_devices(names)]
    by_name = {_described(handle).name: handle for handle in _handles()}
    return (ctypes.c_void_p * (len(chosen) + 1))(*(by_name[name] for name in chosen), None)


def device_text(n_gpu_layers: int | None, names: Sequence[str] | None = None) -> str:
    """Return which devices run a model with that many layers offloaded, such as `CPU (AMD EPYC 9B14)`.

    n_gpu_layers: None means all that fit, as llama.cpp does by default. names: of the devices offloaded to, None for
    all. Without a GPU everything runs on the CPU; a warning says so when layers were asked to be offloaded.
    """
    chosen = chosen_devices(names)
    if n_gpu_layers and n_gpu_layers > 0 and not chosen:
        logger.warning("there is no GPU device to offload to: all layers run on the CPU")
    used = chosen if chosen and n_gpu_layers != 0 else [device for device in devices() if device.is_cpu]
    return ", ".join(_text(device) for device in used) or "CPU"


def device_list(found: Sequence[Device]) -> str:
    """Return a line for each device: its name, what it is, and its memory."""
    lines = []
    for device in found:
        kind = "offload with --device" if device.is_gpu else "always used"
        memory = f", {device.total_bytes >> 20} MiB, {device.free_bytes >> 20} MiB free" if device.total_bytes else ""
        lines.append(f"{_text(device)}{memory}; {kind}")
    return "\n".join(lines)


def processor_texts() -> tuple[str, str]:
    """Return descriptions of the CPU with its accelerators, and of the GPUs, each joined by commas."""
    found = devices()
    cpu = ", ".join(device.description for device in found if not device.is_gpu)
    return cpu, ", ".join(device.description for device in found if device.is_gpu)


def backend_names() -> str:
    """Return what llama.cpp was built with beside the CPU, joined by commas; `CPU` when with nothing."""
    loaded = libraries()
    registered = [loaded.ggml.ggml_backend_reg_get(i) for i in range(loaded.ggml.ggml_backend_reg_count())]
    names = [loaded.ggml_base.ggml_backend_reg_name(handle).decode(errors="replace") for handle in registered]
    return ",".join(name for name in names if name != "CPU") or "CPU"


def cpu_function(name: str, signature: Any) -> Any:
    """Return a function of ggml's CPU backend, which may be a library of its own, with a ctypes signature."""
    loaded = libraries()
    handle = next(handle for handle in _handles() if loaded.ggml_base.ggml_backend_dev_type(handle) == _CPU)
    registered = loaded.ggml_base.ggml_backend_dev_backend_reg(handle)
    return signature(loaded.ggml_base.ggml_backend_reg_get_proc_address(registered, name.encode()))


def _handles() -> list[int]:
    ggml = libraries().ggml
    return [ggml.ggml_backend_dev_get(i) for i in range(ggml.ggml_backend_dev_count())]


def _described(handle: int) -> Device:
    base = libraries().ggml_base
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    base.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    kind = base.ggml_backend_dev_type(handle)
    return Device(
        name=base.ggml_backend_dev_name(handle).decode(errors="replace"),
        description=base.ggml_backend_dev_description(handle).decode(errors="replace").strip(),
        is_gpu=kind in _GPU_KINDS,
        is_cpu=kind == _CPU,
        total_bytes=total.value,
        free_bytes=free.value,
    )


def _text(device: Device) -> str:
    return f"{device.name} ({device.description})" if device.description not in ("", device.name) else device.name
