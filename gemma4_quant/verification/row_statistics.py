"""Errors of decoded rows against their originals, in one pass over both."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.arrays import Float32Rows
from gemma4_quant.compiled import compiled
from gemma4_quant.verification.limits import FLOAT_FLOOR, FLOAT_STEP

STRETCH = 256
"""Weights of a row that are judged together: a super-block."""

_N_SUMS = 9
_ERROR, _ORIGINAL, _PRODUCT, _DECODED, _NON_FINITE, _NON_FINITE_ORIGINAL, _BEYOND, _WORST, _LIKENESS = range(_N_SUMS)


_BINS_PER_OCTAVE = 8
_LOWEST_OCTAVE = -48
_N_BINS = 64 * _BINS_PER_OCTAVE

Rows = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]
Histogram = npt.NDArray[np.int64]
"""Counts of stretches by the logarithm of the ratio of squared error to squared original."""


@dataclass(frozen=True)
class RowStatistics:
    """Sums over each row of a tile, arrays of (n_rows,) float64; weights that are not finite are left out.

    error, original, decoded: squared errors, weights and decoded weights. product: decoded times original weights.
    n_non_finite, n_non_finite_original: decoded and original weights that are NaN or infinite.
    n_beyond: weights that differ by more than a float type's rounding.
    worst_stretch: the largest ratio of squared error, less `floor`² for each weight, to squared original over the
    stretches of the row. likeness: the largest cosine of a stretch, Σ x·w / √(Σ x² · Σ w²); 1 where the original is
    within the floor. histogram: how many stretches of the tile have which ratio, see `typical_error`.
    """

    sums: npt.NDArray[np.float64]
    histogram: Histogram

    @property
    def error(self) -> npt.NDArray[np.float64]:
        return self.sums[:, _ERROR]

    @property
    def original(self) -> npt.NDArray[np.float64]:
        return self.sums[:, _ORIGINAL]

    @property
    def product(self) -> npt.NDArray[np.float64]:
        return self.sums[:, _PRODUCT]

    @property
    def decoded(self) -> npt.NDArray[np.float64]:
        return self.sums[:, _DECODED]

    @property
    def n_non_finite(self) -> npt.NDArray[np.float64]:
        return self.sums[:, _NON_FINITE]

    @property
    def n_non_finite_original(self) -> npt.NDArray[np.float64]:
        return self.sums[:, _NON_FINITE_ORIGINAL]

    @property
    def n_beyond(self) -> npt.NDArray[np.float64]:
        return self.sums[:, _BEYOND]

    @property
    def worst_stretch(self) -> npt.NDArray[np.float64]:
        return self.sums[:, _WORST]

    @property
    def likeness(self) -> npt.NDArray[np.float64]:
        return self.sums[:, _LIKENESS]


def row_statistics(decoded: Float32Rows, original: Float32Rows, floor: float) -> RowStatistics:
    """Compare rows, (n_rows, n_cols) float32 each."""
    sums, histogram = np.zeros((len(decoded), _N_SUMS)), empty_histogram()
    _compare(np.ascontiguousarray(decoded), np.ascontiguousarray(original), np.float64(floor) ** 2, sums, histogram)
    return RowStatistics(sums, histogram)


def empty_histogram() -> Histogram:
    """Return a histogram to add others to."""
    return np.zeros(_N_BINS, np.int64)


def typical_error(histogram: Histogram) -> float:
    """Return the relative error that half of the stretches stay below, rounded up by at most 5 %."""
    if not histogram.any():
        return 0.0
    middle = int(np.searchsorted(np.cumsum(histogram), (histogram.sum() + 1) // 2))
    return 0.0 if middle == 0 else float(2.0 ** (((middle + 1) / _BINS_PER_OCTAVE + _LOWEST_OCTAVE) / 2))


@compiled()
def _compare(decoded: Rows, original: Rows, floor: float, sums: Sums, histogram: Histogram) -> None:
    n_cols = decoded.shape[1]
    for row in range(decoded.shape[0]):
        for start in range(0, n_cols, STRETCH):
            stop = min(start + STRETCH, n_cols)
            error, energy, product, energy_decoded = 0.0, 0.0, 0.0, 0.0
            for column in range(start, stop):
                x, w = np.float64(decoded[row, column]), np.float64(original[row, column])
                if not (np.isfinite(x) and np.isfinite(w)):
                    sums[row, _NON_FINITE] += not np.isfinite(x)
                    sums[row, _NON_FINITE_ORIGINAL] += not np.isfinite(w)
                    continue
                difference = x - w
                error += difference * difference
                energy += w * w
                product += x * w
                energy_decoded += x * x
                if abs(difference) > FLOAT_STEP * abs(w) + FLOAT_FLOOR:
                    sums[row, _BEYOND] += 1
            sums[row, _ERROR] += error
            sums[row, _ORIGINAL] += energy
            sums[row, _PRODUCT] += product
            sums[row, _DECODED] += energy_decoded
            ratio = _ratio(error - (stop - start) * floor, energy)
            sums[row, _WORST] = max(sums[row, _WORST], ratio)
            cosine = 1.0 if energy <= (stop - start) * floor else _cosine(product, energy_decoded, energy)
            sums[row, _LIKENESS] = cosine if start == 0 else max(sums[row, _LIKENESS], cosine)
            histogram[_bin(ratio)] += 1


@compiled()
def _ratio(error: float, energy: float) -> float:
    if error <= 0:
        return 0.0
    return error / energy if energy > 0 else np.inf


@compiled()
def _cosine(product: float, one: float, other: float) -> float:
    return product / np.sqrt(one * other) if one > 0 and other > 0 else 0.0


@compiled()
def _bin(ratio: float) -> int:
    if ratio < 2.0**_LOWEST_OCTAVE:
        return 0
    if ratio > 2.0**15:
        return _N_BINS - 1
    return int((np.log2(ratio) - _LOWEST_OCTAVE) * _BINS_PER_OCTAVE)
