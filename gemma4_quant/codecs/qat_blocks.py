"""Blocks of the types whose decoded weights are code · scale, made from the grid that weights already lie on.

Four-bit grids fit Q4_0; two-bit grids fit Q2_0, TQ2_0 and, with a scale for 256 weights, Q2_K. A block that is on no
grid is encoded by the type's ordinary search.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs import codec_for
from gemma4_quant.codecs.base import Effort
from gemma4_quant.codecs.checks import checked_rows
from gemma4_quant.codecs.qat_grid import BlockState, GridFit, GridShape, fit_grid
from gemma4_quant.ggml import GgmlType, block_size

GRID_SHAPES = {
    GgmlType.Q4_0: GridShape(32, -8, 7),
    GgmlType.Q2_0: GridShape(64, -1, 2),
    GgmlType.TQ2_0: GridShape(256, -1, 2),
    GgmlType.Q2_K: GridShape(256, -3, 3),
}
"""Types that can hold a grid exactly, and the codes they hold (ggml-common.h; dequantize_row_* in ggml-quants.c).

Q2_K holds four neighbouring codes, or the odd ones of a grid without zero, by its minimum; see `_pack_q2_k`.
"""

Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class GridBlocks:
    """Encoded rows, (n_rows, row_bytes) uint8, and how many blocks are in each BlockState."""

    data: ByteRows
    n_exact: int
    n_near: int
    n_off: int


def fit_type(kind: GgmlType, rows: Float32Rows, dropped_bits: int) -> GridFit:
    """Fit rows to the grid that blocks of `kind` hold; blocks whose codes it cannot hold together are OFF.

    See fit_grid; `kind` is one of GRID_SHAPES.
    """
    shape = GRID_SHAPES[kind]
    fit = fit_grid(rows, shape, dropped_bits)
    if kind is GgmlType.Q2_K:
        fit.states[~_fits_q2_k(fit.codes.reshape(len(rows), -1, shape.n_weights))] = BlockState.OFF
    return fit


def encode_on_grid(
    kind: GgmlType, rows: Float32Rows, importance: Float32Row | None, effort: Effort, dropped_bits: int
) -> GridBlocks:
    """Encode rows by the grid they lie on, blocks off it as the codec of `kind` does with importance and effort.

    rows: (n_rows, n_cols) float32. dropped_bits: see fit_grid. Raises what Codec.encode raises.
    """
    rows = checked_rows(rows, kind)
    fit = fit_type(kind, rows, dropped_bits)
    blocks = _PACKERS[kind](fit.codes.reshape(*fit.states.shape, -1), fit.scales)
    off = fit.states == BlockState.OFF
    if (mixed := off.any(axis=1)).any():
        ordinary = codec_for(kind).encode(rows[mixed], importance, effort)
        taken = off[mixed]
        blocks[off] = ordinary.reshape(*taken.shape, block_size(kind).n_bytes)[taken]
    counts = np.bincount(fit.states.ravel(), minlength=len(BlockState))
    return GridBlocks(
        data=blocks.reshape(len(rows), -1),
        n_exact=int(counts[BlockState.EXACT]),
        n_near=int(counts[BlockState.NEAR]),
        n_off=int(counts[BlockState.OFF]),
    )


def _half_bytes(scales: Float32Rows) -> ByteRows:
    """Return (n_rows, n_blocks, 2) uint8: scales as little-endian float16, which holds them exactly."""
    return scales.astype("<f2")[..., None].view(np.uint8)


def _pack_q4_0(codes: Codes, scales: Float32Rows) -> ByteRows:
    """Pack (n_rows, n_blocks, 32) codes: code i in the low, code i + 16 in the high half of byte i."""
    nibbles = (codes + 8).astype(np.uint8)
    return np.concatenate([_half_bytes(scales), nibbles[..., :16] | nibbles[..., 16:] << 4], axis=-1)


def _pack_q2_0(codes: Codes, scales: Float32Rows) -> ByteRows:
    """Pack (n_rows, n_blocks, 64) codes: four neighbours in a byte."""
    fours = (codes + 1).astype(np.uint8).reshape(*scales.shape, 16, 4)
    packed = fours[..., 0] | fours[..., 1] << 2 | fours[..., 2] << 4 | fours[..., 3] << 6
    return np.concatenate([_half_bytes(scales), packed], axis=-1)


def _pack_tq2_0(codes: Codes, scales: Float32Rows) -> ByteRows:
    return np.concatenate([_pack_twos((codes + 1).astype(np.uint8)), _half_bytes(scales)], axis=-1)


def _fits_q2_k(codes: Codes) -> npt.NDArray[np.bool_]:
    """Tell of (n_rows, n_blocks, 256) codes from -3 to 3 whether four values hold those of a block."""
    least, most = np.minimum(codes.min(axis=-1), 0), np.maximum(codes.max(axis=-1), 0)
    fits: npt.NDArray[np.bool_] = (most - least <= 3) | _all_odd(codes)
    return fits


def _all_odd(codes: Codes) -> npt.NDArray[np.bool_]:
    odd: npt.NDArray[np.bool_] = ((codes & 1) == 1).all(axis=-1)
    return odd


def _pack_q2_k(codes: Codes, scales: Float32Rows) -> ByteRows:
    """Pack (n_rows, n_blocks, 256) codes as d · sc · q − dmin · m with d = dmin: sc steps of q, m to take off.

    Neighbouring codes have sc = 1 and m = −least; the odd codes −3, −1, 1, 3 have sc = 2 and m = 3.
    """
    odd = _all_odd(codes)
    taken_off = np.where(odd, 3, -np.minimum(codes.min(axis=-1), 0)).astype(np.uint8)
    steps = np.where(odd, 2, 1).astype(np.uint8)
    q = ((codes + taken_off[..., None].astype(np.int8)) // steps[..., None].astype(np.int8)).astype(np.uint8)
    sub_scales = np.repeat((steps | taken_off << 4)[..., None], 16, axis=-1)
    halves = _half_bytes(scales)
    return np.concatenate([sub_scales, _pack_twos(q & np.uint8(3)), halves, halves], axis=-1)


def _pack_twos(twos: ByteRows) -> ByteRows:
    """Pack (…, 256) two-bit numbers into 64 bytes: four runs of 32 lie above each other in 32 bytes."""
    runs = twos.reshape(*twos.shape[:-1], 2, 4, 32)
    packed = runs[..., 0, :] | runs[..., 1, :] << 2 | runs[..., 2, :] << 4 | runs[..., 3, :] << 6
    return packed.astype(np.uint8).reshape(*twos.shape[:-1], 64)


_PACKERS = {
    GgmlType.Q4_0: _pack_q4_0,
    GgmlType.Q2_0: _pack_q2_0,
    GgmlType.TQ2_0: _pack_tq2_0,
    GgmlType.Q2_K: _pack_q2_k,
}
