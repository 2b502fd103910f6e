"""Simulated weights of quantization-aware training: each convention of scales, written apart from the package."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from checkpoints import EXAMPLE, StoredData, to_bfloat16, write_safetensors

Rows = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

FOUR_BIT_GRIDS = ("absmax/7", "absmax/8", "extremum/-8", "learned", "per row")
TWO_BIT_GRIDS = ("ternary", "four codes")


def bfloat16(values: npt.NDArray[Any]) -> Rows:
    """Round to the nearest bfloat16 values, as float32."""
    return (to_bfloat16(np.ascontiguousarray(values, np.float32)).astype(np.uint32) << 16).view(np.float32)


def four_bit(weights: Rows, grid: str, *, scales_in: str = "bf16", seed: int = 0) -> Rows:
    """Snap (n_rows, n_cols) weights to codes -8 to 7 times a scale, rounded to bfloat16; 32 weights share a scale."""
    groups = weights.reshape(-1, 32).astype(np.float64)
    largest = np.abs(groups).max(axis=1, keepdims=True)
    if grid == "absmax/7":
        scales = largest / 7
    elif grid == "absmax/8":
        scales = largest / 8
    elif grid == "extremum/-8":
        scales = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1) / -8
    elif grid == "learned":
        scales = largest / 7 * np.random.default_rng(seed).uniform(0.6, 1.1, largest.shape)
    else:
        per_row = np.abs(weights).max(axis=1).astype(np.float64) / 7
        scales = np.repeat(per_row, weights.shape[1] // 32)[:, None]
    return _rounded(groups, scales, -8, 7, scales_in).reshape(weights.shape)


def two_bit(weights: Rows, grid: str, *, group: int, scales_in: str = "bf16") -> Rows:
    """Snap (n_rows, n_cols) weights to codes -1 to 1 or -2 to 1 times a scale for `group` weights."""
    groups = weights.reshape(-1, group).astype(np.float64)
    scales = np.abs(groups).mean(axis=1, keepdims=True) * 1.2
    low = -1 if grid == "ternary" else -2
    return _rounded(groups, scales, low, 1, scales_in).reshape(weights.shape)


def _rounded(
    groups: npt.NDArray[np.float64], scales: npt.NDArray[np.float64], low: int, high: int, kind: str
) -> Rows:
    stored = bfloat16(scales) if kind == "bf16" else scales.astype(np.float32)
    safe = np.where(stored == 0, 1, stored)
    codes = np.clip(np.rint(groups / safe), low, high).astype(np.float32)
    return bfloat16(codes * stored)


def write_snapped_example(directory: Path, snap: Callable[[str, Rows], Rows]) -> Path:
    """Write the example checkpoint with each of its matrices, bfloat16, replaced by snap(name, matrix)."""
    directory.mkdir(parents=True)
    for path in EXAMPLE.iterdir():
        if path.suffix in {".json", ".jinja"} and "index" not in path.name:
            shutil.copyfile(path, directory / path.name)
    tensors: dict[str, StoredData] = {}
    for path in sorted(EXAMPLE.glob("*.safetensors")):
        raw = path.read_bytes()
        (length,) = struct.unpack_from("<Q", raw)
        for name, entry in json.loads(raw[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            start, stop = (8 + length + at for at in entry["data_offsets"])
            data = raw[start:stop]
            if len(entry["shape"]) == 2 and entry["dtype"] == "BF16":
                weights = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
                data = to_bfloat16(snap(name, weights.reshape(entry["shape"]))).tobytes()
            tensors[name] = (entry["dtype"], tuple(entry["shape"]), data)
    write_safetensors(directory / "model.safetensors", tensors)
    return directory
