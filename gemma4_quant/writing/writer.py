"""Carry out plans: read tiles of rows, encode them on all cores, write them in place, rename at the end."""

import errno
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path

from gemma4_quant import __version__
from gemma4_quant.codecs import ENCODERS_REVISION, compile_kernels, kernels_cached
from gemma4_quant.codecs.base import Effort
from gemma4_quant.cores import n_cores
from gemma4_quant.errors import OutputError, listed
from gemma4_quant.formats.shards import shard_paths
from gemma4_quant.model import Tensor
from gemma4_quant.progress import Progress, SilentProgress
from gemma4_quant.threads import in_order
from gemma4_quant.writing.boot import boot_id
from gemma4_quant.writing.committer import Committer
from gemma4_quant.writing.destination import allocated_bytes, cannot_write, check_destination, partial_of
from gemma4_quant.writing.output import Output
from gemma4_quant.writing.plan import Plan, PlannedTensor
from gemma4_quant.writing.tiles import Destination, Tile, tiles_of, write_tile


@dataclass(frozen=True)
class Job:
    """A plan and where its output goes: a file, or for several shards the name that theirs are made from."""

    plan: Plan
    path: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that will be written."""
        return shard_paths(self.path, len(self.plan.files))


def write_gguf(
    plan: Plan,
    output: Path,
    *,
    effort: Effort = Effort.BALANCED,
    n_threads: int | None = None,
    progress: Progress | None = None,
    label: str = "write",
    inputs: Sequence[Path] = (),
    durable: bool = True,
) -> None:
    """Write the files of one plan; see write_ggufs."""
    write_ggufs(
        [Job(plan, output)],
        effort=effort,
        n_threads=n_threads,
        progress=progress,
        label=label,
        inputs=inputs,
        durable=durable,
    )


def write_ggufs(
    jobs: Sequence[Job],
    *,
    effort: Effort = Effort.BALANCED,
    n_threads: int | None = None,
    progress: Progress | None = None,
    label: str = "write",
    inputs: Sequence[Path] = (),
    durable: bool = True,
) -> None:
    """Write the files of several plans of the same tensors, each read once; outputs appear whole or not at all.

    Bytes depend neither on `n_threads` nor on what else is written in the same run. An interrupted run leaves
    `.partial` files and goes on from there when called again with the same plans, together or one by one. inputs:
    further files that must not be overwritten. durable: wait for the disk, so that a power failure costs little work
    and never leaves half a file under its name; otherwise both hold for killed processes only, as with `cp`.

    Raises OutputError (no space, no permission) and what sources and codecs raise; then nothing is left, except after
    a full disk, where the partial files wait for space.
    """
    check_jobs(jobs, inputs)
    check_space(jobs)
    progress = progress or SilentProgress()
    _compile([planned for job in jobs for planned in job.plan.tensors], progress)
    boot = None if durable else boot_id()
    outputs: list[Output] = []
    try:
        for job in jobs:
            outputs.append(Output(job.plan, job.path, _digest(job.plan, effort, boot), durable=boot is None))
        for output in outputs:
            output.begin()
        _write_tensors(outputs, effort, n_threads or n_cores(), progress, label)
        _publish(outputs)
    except KeyboardInterrupt:
        for output in outputs:
            output.close()
        raise
    except BaseException as error:
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        kept = [output.give_up(keep_done=is_full) for output in outputs]
        if isinstance(error, OSError):
            raise _output_error(error, jobs, is_full=is_full, kept=any(kept)) from error
        raise


def _publish(outputs: Sequence[Output]) -> None:
    """Give finished outputs their names; journals go last, so that a run that is killed here knows what is done."""
    for output in outputs:
        output.finish()
    for output in outputs:
        output.publish()
    for output in outputs:
        output.forget()


def _output_error(error: OSError, jobs: Sequence[Job], *, is_full: bool, kept: bool) -> OutputError:
    """Turn a failure of the operating system into ours. kept: partial files wait for space."""
    if not is_full:
        return cannot_write(jobs[0].path, error)
    rest = "; what is done is kept" if kept else ""
    return OutputError(
        f"no space left for {listed(str(job.path) for job in jobs)}{rest}: "
        "free some space and run the same command again"
    )


def _digest(plan: Plan, effort: Effort, boot: str | None) -> str:
    """Return what tells the bytes of one run from those of another; `boot` where they may be lost with the power."""
    state = f"{plan.digest} {effort.value} {__version__} {ENCODERS_REVISION} {boot}"
    return hashlib.sha256(state.encode()).hexdigest()


def check_jobs(jobs: Sequence[Job], inputs: Sequence[Path]) -> None:
    """Raise OutputError for what would stop the outputs from being written, other than a lack of space."""
    paths = [path for job in jobs for path in {job.path, *job.paths}]
    if twice := sorted({str(path) for path in paths if paths.count(path) > 1}):
        raise OutputError(f"two outputs would be written to {listed(twice)}; put {{ftype}} into the name")
    for job in jobs:
        sources = {file.path for planned in job.plan.tensors for file in planned.tensor.source.files}
        for path in job.paths:
            check_destination(path, [*inputs, *sources])


def bytes_needed(jobs: Sequence[Job]) -> dict[Path, int]:
    """Return how many bytes the outputs need in each directory, beyond what an earlier run has reserved there."""
    needed: dict[Path, int] = {}
    for job in jobs:
        for path, file in zip(job.paths, job.plan.files, strict=True):
            missing = max(0, file.n_bytes - allocated_bytes(partial_of(path)))
            needed[path.parent] = needed.get(path.parent, 0) + missing
    return needed


def check_space(jobs: Sequence[Job]) -> None:
    """Raise OutputError when there is no room for the outputs."""
    for directory, n_bytes in bytes_needed(jobs).items():
        free = shutil.disk_usage(directory).free
        if n_bytes > free:
            names = listed(str(job.path) for job in jobs if job.path.parent == directory)
            raise OutputError(
                f"{names} needs {n_bytes:,} bytes, {free:,} are free in {directory}; "
                "free some space or write elsewhere"
            )


def _compile(tensors: Sequence[PlannedTensor], progress: Progress) -> None:
    """Have the kernels ready before threads need them; a first run on a machine waits here."""
    changed = [planned for planned in tensors if planned.type is not planned.tensor.type]
    kinds = {planned.type for planned in changed} | {planned.tensor.type for planned in changed}
    if kernels_cached(kinds):
        return
    progress.start("compile encoders for this machine, first run only", len(kinds), "type")
    for kind in sorted(kinds):
        compile_kernels([kind])
        progress.advance(1)
    progress.finish()


@dataclass(frozen=True)
class _Work:
    """A tensor and all places it goes to."""

    tensor: Tensor
    destinations: tuple[Destination, ...]
    outputs: tuple[Output, ...]

    @property
    def rows_at_once(self) -> int:
        """Rows that its encoders want to have together; a common multiple."""
        encoders = [each.planned.encoder for each in self.destinations]
        return lcm(*(encoder.rows_at_once for encoder in encoders if encoder is not None))


def _shared_work(outputs: Sequence[Output]) -> list[_Work]:
    """Bring together what is left to do of the same tensor for several outputs, in the order of the first."""
    places: dict[tuple[str, int], list[tuple[Output, Destination]]] = {}
    for output in outputs:
        for planned, file in output.remaining():
            key = (planned.tensor.name, id(planned.tensor.source))
            places.setdefault(key, []).append((output, Destination(planned, file.write)))
    return [
        _Work(parts[0][1].planned.tensor, tuple(part for _, part in parts), tuple(output for output, _ in parts))
        for parts in places.values()
    ]


def _write_tensors(outputs: Sequence[Output], effort: Effort, n_threads: int, progress: Progress, label: str) -> None:
    work = _shared_work(outputs)
    total = sum(planned.n_bytes for output in outputs for planned in output.plan.tensors)
    progress.start(label, total, "B")
    progress.advance(total - sum(part.planned.n_bytes for each in work for part in each.destinations))
    items = ((each, tile) for each in work for tile in tiles_of(each.tensor, each.rows_at_once))

    def write(item: tuple[_Work, Tile]) -> int:
        each, tile = item
        return write_tile(tile, each.destinations, effort)

    try:
        with Committer(outputs) as committer:
            for (each, tile), n_bytes in in_order(write, items, n_threads):
                progress.advance(n_bytes)
                if tile.stop == tile.tensor.n_rows:
                    for output in each.outputs:
                        committer.add(output, [tile.tensor.name])
    finally:
        progress.finish()
