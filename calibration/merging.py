"""Adding up importance files: parts of one calibration made on several machines, or calibrations on several texts.

Sums and counts are added in float64, in which `calibrate` stores the sums of a part beside those in float32. So the
parts of a text give the counts and float32 sums of the whole, except where a sum lies within some 1e-15 of the middle
between two float32 numbers.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gemma4_quant.calibration.importance import Entry, Importance, read_importance
from gemma4_quant.errors import ImportanceError, InputError, listed


def merge_files(paths: Sequence[Path]) -> Importance:
    """Read importance files and add them up; see merge. Raises InputError when a file is named twice."""
    if not paths:
        raise InputError("there is no importance file to merge; name at least one")
    real = [path.resolve() for path in paths]
    if twice := [str(path) for path, file in zip(paths, real, strict=True) if real.count(file) > 1]:
        raise InputError(f"{listed(dict.fromkeys(twice))} is named twice, and would count twice; name each part once")
    return merge([(str(path), read_importance(path)) for path in paths])


def merge(parts: Sequence[tuple[str, Importance]]) -> Importance:
    """Add up statistics.

    parts: a name for messages, and the statistics. Weights that only some parts have keep what those say. Chunks
    count together where all have one size, else as many of the first part's size as the activations fill. Raises
    ImportanceError when parts are of different models.
    """
    entries = dict(parts[0][1].entries)
    wrong = []
    for part, importance in parts[1:]:
        for name, entry in importance.entries.items():
            total = _added(entries[name], entry) if name in entries else entry
            if total is None:
                shapes = f"{entry.sums.shape} in {part}, {entries[name].sums.shape} before"
                wrong.append(f"{name} ({shapes})")
            else:
                entries[name] = total
    if wrong:
        raise ImportanceError(f"these are parts of different models, which do not add up: {listed(wrong, 3)}")
    everything = [importance for _, importance in parts]
    datasets = tuple(dict.fromkeys(text for importance in everything for text in importance.datasets))
    chunk_size = everything[0].chunk_size
    if all(importance.chunk_size == chunk_size for importance in everything):
        n_chunks = sum(importance.chunk_count for importance in everything)
    else:
        n_chunks = int(max(entry.counts.max() for entry in entries.values())) // max(1, chunk_size)
    return Importance(entries, datasets, n_chunks, chunk_size)


def _added(first: Entry, second: Entry) -> Entry | None:
    """Add two entries, of which one may have a single count for all its matrices; None when they do not fit."""
    n_matrices = max(len(first.counts), len(second.counts))
    first, second = first.of_matrices(n_matrices), second.of_matrices(n_matrices)
    if first.sums.shape != second.sums.shape:
        return None
    counts = first.counts.astype(np.float64) + second.counts
    return Entry(first.sums.astype(np.float64) + second.sums, counts)
