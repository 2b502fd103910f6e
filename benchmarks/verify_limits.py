"""Measure the errors of honest quantizations, which verify's limits lie above: `python benchmarks/verify_limits.py`.

Every type, ggml's quantizer and ours, rows of five distributions, importance of four. Printed is the largest of each
statistic; docs/measurements.md has the table.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import libggml

from gemma4_quant.arrays import ByteRows, Float32Row, Float32Rows
from gemma4_quant.codecs import CODECS
from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import Gemma4QuantError
from gemma4_quant.ggml import GgmlType, is_quantized
from gemma4_quant.verification.decoding import decoder_for
from gemma4_quant.verification.limits import limit_of
from gemma4_quant.verification.row_statistics import row_statistics, typical_error

N_ROWS, N_COLS = 64, 1024
_NEEDS_IMPORTANCE = {"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M"}


def distributions(rng: np.random.Generator) -> dict[str, Float32Rows]:
    """Return rows of 0.02 standard deviation: bell-shaped, heavy-tailed, with outliers, with loud columns."""
    bell = rng.normal(size=(N_ROWS, N_COLS))
    outliers = np.where(rng.random((N_ROWS, N_COLS)) < 0.003, 30, 1) * bell
    rows = {
        "bell": bell,
        "heavy tails": rng.standard_t(4, size=(N_ROWS, N_COLS)),
        "outliers": outliers,
        "loud columns": bell * np.exp(0.7 * rng.normal(size=N_COLS)),
    }
    return {name: (0.02 * values).astype(np.float32) for name, values in rows.items()}


def importances(rng: np.random.Generator) -> dict[str, Float32Row | None]:
    """Return importance from none to a few columns far above the rest."""
    massive = np.exp(rng.normal(size=N_COLS))
    massive[rng.integers(0, N_COLS, 6)] *= 1e5
    wide = {
        "even": np.exp(rng.normal(size=N_COLS)),
        "uneven": np.exp(2.5 * rng.normal(size=N_COLS)),
        "massive": massive,
    }
    return {"none": None, **{name: values.astype(np.float32) for name, values in wide.items()}}


def encodings(kind: GgmlType, rows: Float32Rows, importance: Float32Row | None) -> Iterator[ByteRows]:
    """Yield the bytes that ggml and, where there is one, our encoder make."""
    uniform = np.ones(N_COLS, np.float32) if kind.name in _NEEDS_IMPORTANCE else None
    yield libggml.encode(kind, rows, uniform if importance is None else importance)
    if kind in CODECS:
        yield CODECS[kind].encode(rows, importance, Effort.BALANCED)


def main() -> None:
    """Print a line for each type."""
    rng = np.random.default_rng(0)
    all_rows, all_importance = distributions(rng), importances(rng)
    print("| type | tensor | limit | typical | limit | worst row | limit | least likeness | scale | limits |")
    print("|---" * 10 + "|")
    for kind in GgmlType:
        if not is_quantized(kind) or kind in (GgmlType.Q8_1, GgmlType.Q8_K):
            continue
        found = []
        try:
            decode = decoder_for(kind)
            for rows in all_rows.values():
                for importance in all_importance.values():
                    for data in encodings(kind, rows, importance):
                        found.append(_figures(decode(data, N_COLS), rows))
        except Gemma4QuantError as error:
            print(f"{kind.name}: {error}")
            continue
        tensor, typical, row, _, unlikeness, most_gain = np.max(found, axis=0)
        least_gain = min(figures[-1] for figures in found)
        limit = limit_of(kind)
        row_limit = f"{limit.row:.2f}" if limit.row < 2 else "–"
        print(
            f"| {kind.name} | {tensor:.3f} | {limit.tensor:.2f} | {typical:.4f} | {limit.typical:.4f} | {row:.2f} "
            f"| {row_limit} | {1 - unlikeness:.2f} | {least_gain:.2f}–{most_gain:.2f} "
            f"| {limit.least_gain:.2f}–{limit.most_gain:.2f} |"
        )


def _figures(decoded: Float32Rows, rows: Float32Rows) -> tuple[float, ...]:
    seen = row_statistics(decoded, rows, 0.0)
    return (
        float(np.sqrt(seen.error.sum() / seen.original.sum())),
        typical_error(seen.histogram),
        float(np.sqrt((seen.error / seen.original).max())),
        float(np.sqrt(seen.worst_stretch.max())),
        1 - float(seen.likeness.min()),
        float(seen.product.sum() / seen.decoded.sum()),
    )


if __name__ == "__main__":
    main()
