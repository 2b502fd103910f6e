"""Adding up files of second moments of parts of a text: what one run over the whole text would have given."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gemma4_quant.calibration.moment_sums import HeldOut, MatrixMoments
from gemma4_quant.calibration.moments import Moments, MomentsFile, Provenance, read_moments
from gemma4_quant.calibration.moments_writing import EntryLayout, MomentsWriter
from gemma4_quant.errors import InputError, MomentsError, listed


def merge_moments(sources: Sequence[Path], output: Path) -> Provenance:
    """Add up files of second moments of the same model; returns what the sum is made from.

    A matrix is in memory at a time. Sums are added in float64 and rounded once. Raises MomentsError when the files do
    not fit each other, OutputError when the sum cannot be written.
    """
    if not sources:
        raise InputError("there is no file of second moments to merge")
    files = [read_moments(path) for path in sources]
    for other in files[1:]:
        _check_alike(files[0], other)
    provenance = _added(files)
    entries = _layouts(files[0])
    digest = hashlib.sha256()
    for file in files:
        for moments in file.values():
            digest.update(moments.identity)
    with MomentsWriter(output, entries, provenance, digest.hexdigest(), sources) as writer:
        for entry in writer.remaining():
            parts = [file[entry.name] for file in files]
            for matrix in range(entry.n_matrices):
                writer.write(entry, matrix, _sum(parts, matrix))
            writer.commit([entry])
    return provenance


def _layouts(file: MomentsFile) -> tuple[EntryLayout, ...]:
    names: dict[str, list[str]] = {}
    for name, moments in file.items():
        names.setdefault(moments.entry, []).append(name)
    return tuple(
        EntryLayout(tuple(shared), first.n_in, first.n_matrices, first.block_width, first.n_slots)
        for entry, shared in names.items()
        for first in [file[entry]]
    )


def _check_alike(first: MomentsFile, other: MomentsFile) -> None:
    ours, theirs = ({layout.name: layout for layout in _layouts(file)} for file in (first, other))
    different = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if different:
        raise MomentsError(
            f"{first.path} and {other.path} hold different things of {listed(different)}: gather the parts of a text "
            "from the same model, with the same --hessian-memory and parts of similar length"
        )
    sizes = (first.provenance.chunk_size, other.provenance.chunk_size)
    if sizes[0] != sizes[1]:
        raise MomentsError(f"{first.path} is of chunks of {sizes[0]} tokens, {other.path} of {sizes[1]}")


def _added(files: Sequence[MomentsFile]) -> Provenance:
    each = [file.provenance for file in files]
    return replace(
        each[0],
        datasets=tuple(dict.fromkeys(name for part in each for name in part.datasets)),
        chunk_count=sum(part.chunk_count for part in each),
        held_out_chunks=sum(part.held_out_chunks for part in each),
    )


def _sum(parts: Sequence[Moments], matrix: int) -> MatrixMoments:
    sums = np.zeros(parts[0].parts.sums.n_cols, np.float64)
    diagonal = np.zeros(parts[0].n_in, np.float64)
    held_out = HeldOut(parts[0].n_slots, parts[0].n_in)
    for part in parts:
        sums += part.packed(matrix)
        diagonal += part.sums_of_squares(matrix)
        keys, vectors = part.held_out_bits(matrix)
        held_out.offer(keys[keys >= 0], vectors[keys >= 0])
    keys, vectors = held_out.stored()
    count = sum(int(part.counts[matrix]) for part in parts)
    return MatrixMoments(sums.astype(np.float32), diagonal.astype(np.float32), count, keys, vectors)
