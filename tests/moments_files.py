"""Files of second moments of inputs that a test makes up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma4_quant.calibration.moment_sums import RunningMoments
from gemma4_quant.calibration.moments import MomentsFile, Provenance, read_moments
from gemma4_quant.calibration.moments_writing import EntryLayout, MomentsWriter


@dataclass(frozen=True)
class MadeUpInputs:
    """Inputs of a weight: for each matrix the vectors that are summed, and those that are held out."""

    summed: Sequence[np.ndarray]
    held_out: Sequence[np.ndarray]
    block_width: int | None = None


def correlated(n_vectors: int, n_in: int, seed: int) -> np.ndarray:
    """Return float32 vectors with a few strong common directions, of which `seed` decides the sample only."""
    directions = (
        np.random.default_rng(n_in).standard_normal((n_in // 8, n_in)) * np.linspace(3, 0.3, n_in // 8)[:, None]
    )
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n_vectors, n_in // 8)) @ directions + 0.3 * rng.standard_normal((n_vectors, n_in))
    return mixed.astype(np.float32)


def write_moments(path: Path, inputs: Mapping[str, MadeUpInputs], n_slots: int = 64) -> MomentsFile:
    """Write a file of moments and open it."""
    layouts = [
        EntryLayout(
            (name,), each.summed[0].shape[1], len(each.summed), each.block_width or each.summed[0].shape[1], n_slots
        )
        for name, each in inputs.items()
    ]
    with MomentsWriter(path, layouts, Provenance("made up", ("noise",), 8, 64, 1), "made up") as writer:
        for layout, each in zip(layouts, inputs.values(), strict=True):
            for matrix, (summed, held_out) in enumerate(zip(each.summed, each.held_out, strict=True)):
                running = RunningMoments(layout.n_in, layout.block_width, layout.n_slots)
                running.add(summed)
                if len(held_out):
                    running.hold_out(held_out, np.arange(len(held_out)), matrix)
                writer.write(layout, matrix, running.result())
        writer.commit(layouts)
    return read_moments(path)
