"""Carry out a plan: read tiles of rows, encode them on all cores, write them in place, rename at the end."""

import contextlib
import errno
import hashlib
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gemma4_quant import __version__
from gemma4_quant.arrays import ByteRows
from gemma4_quant.codecs import ENCODERS_REVISION, codec_for, compile_kernels, kernels_cached
from gemma4_quant.codecs.base import Effort
from gemma4_quant.cores import n_cores
from gemma4_quant.destination import cannot_write, check_destination, partial_of
from gemma4_quant.errors import Gemma4QuantError, NonFiniteError, OutputError
from gemma4_quant.ggml import GgmlType
from gemma4_quant.journal import Journal
from gemma4_quant.plan import Plan, PlannedTensor, Tile, tiles_of
from gemma4_quant.progress import Progress, SilentProgress

_SYNC_EVERY_S = 5.0
"""How much work a crash or kill may cost; an interrupt (SIGINT) loses only the tensors it was in."""


def write_gguf(
    plan: Plan,
    output: Path,
    *,
    effort: Effort = Effort.BALANCED,
    n_threads: int | None = None,
    progress: Progress | None = None,
    label: str = "write",
    inputs: Sequence[Path] = (),
) -> None:
    """Write the file of `plan` to `output`; it appears whole or not at all.

    Bytes do not depend on `n_threads`. An interrupted run leaves `output`.partial and goes on from there when called
    again with the same plan. inputs: further files that must not be overwritten. Raises OutputError (no space, no
    permission) and what sources and codecs raise; then nothing is left, except after a full disk, where the partial
    file waits for space.
    """
    check_destination(output, [*inputs, *_source_files(plan)])
    partial = partial_of(output)
    digest = hashlib.sha256(f"{plan.digest} {effort.value} {__version__} {ENCODERS_REVISION}".encode()).hexdigest()
    _check_space(plan, output)
    progress = progress or SilentProgress()
    _compile(plan, progress)
    try:
        journal = Journal(output, digest)
        target = _open_partial(partial, plan.n_bytes, journal)
    except OSError as error:
        raise cannot_write(output, error) from error
    try:
        target.write(0, plan.header)
        _write_tensors(plan, target, journal, effort, n_threads or n_cores(), progress, label)
        target.finish()
        os.replace(partial, output)
        _sync_directory(output.parent)
        journal.remove()
    except KeyboardInterrupt:
        journal.close()
        target.close()
        raise
    except BaseException as error:
        target.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            journal.close()
            raise OutputError(
                f"no space left for {output}; {partial.name} is kept: free some space and run the same command again"
            ) from error
        journal.remove()
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(output, error) from error
        raise


def _open_partial(partial: Path, n_bytes: int, journal: Journal) -> "_OutputFile":
    try:
        return _OutputFile(partial, n_bytes, keep=journal.resumes)
    except OSError:
        journal.remove()
        raise


def _compile(plan: Plan, progress: Progress) -> None:
    """Have the kernels ready before threads need them; a first run on a machine waits here."""
    changed = [planned for planned in plan.tensors if planned.type is not planned.tensor.type]
    kinds = {planned.type for planned in changed} | {planned.tensor.type for planned in changed}
    if kernels_cached(kinds):
        return
    progress.start("compile encoders for this machine, first run only", len(kinds), "type")
    for kind in sorted(kinds):
        compile_kernels([kind])
        progress.advance(1)
    progress.finish()


def _write_tensors(
    plan: Plan,
    target: "_OutputFile",
    journal: Journal,
    effort: Effort,
    n_threads: int,
    progress: Progress,
    label: str,
) -> None:
    progress.start(label, sum(planned.n_bytes for planned in plan.tensors), "B")
    unsynced: list[str] = []
    synced_at = time.monotonic()
    todo = [planned for planned in plan.tensors if not journal.has(planned.tensor.name)]
    progress.advance(sum(p.n_bytes for p in plan.tensors if journal.has(p.tensor.name)))
    try:
        for tile, n_bytes in _encode_tiles(todo, target, effort, n_threads):
            progress.advance(n_bytes)
            if tile.stop == tile.planned.tensor.n_rows:
                unsynced.append(tile.planned.tensor.name)
                if time.monotonic() - synced_at > _SYNC_EVERY_S:
                    target.sync()
                    journal.add(unsynced)
                    unsynced, synced_at = [], time.monotonic()
    except KeyboardInterrupt:
        target.sync()
        journal.add(unsynced)
        raise
    finally:
        progress.finish()


def _encode_tiles(
    todo: list[PlannedTensor], target: "_OutputFile", effort: Effort, n_threads: int
) -> Iterator[tuple[Tile, int]]:
    """Yield each tile with its bytes after it is written, in order, while later ones are under way."""

    def work(tile: Tile) -> int:
        data = encode_tile(tile, effort)
        target.write(tile.offset, data.data.cast("B"))
        return data.nbytes

    under_way: deque[tuple[Tile, Future[int]]] = deque()
    with ThreadPoolExecutor(n_threads, thread_name_prefix="encode") as pool:
        try:
            for planned in todo:
                for tile in tiles_of(planned):
                    under_way.append((tile, pool.submit(work, tile)))
                    if len(under_way) > 2 * n_threads:
                        done, future = under_way.popleft()
                        yield done, future.result()
            for done, future in under_way:
                yield done, future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def encode_tile(tile: Tile, effort: Effort) -> ByteRows:
    """Read a tile and return its bytes in the planned type, (n_rows, row_bytes) uint8."""
    planned, tensor = tile.planned, tile.planned.tensor
    stored = tensor.source.read_rows(tile.start, tile.stop)
    try:
        if planned.type is tensor.type:
            _check_finite(stored, tensor.type)
            return stored
        rows = codec_for(tensor.type).decode(stored, tensor.n_cols)
        importance = None if planned.importance is None else planned.importance[tile.matrix]
        return codec_for(planned.type).encode(rows, importance, effort)
    except Gemma4QuantError as error:
        raise type(error)(f"tensor {tensor.name}, rows {tile.start} to {tile.stop - 1}: {error}") from error


# For each float type: unsigned integers of its width, all bits but the sign, and the largest finite magnitude.
_FLOAT_BITS = {
    GgmlType.F32: ("<u4", 0x7FFFFFFF, 0x7F7FFFFF),
    GgmlType.F16: ("<u2", 0x7FFF, 0x7BFF),
    GgmlType.BF16: ("<u2", 0x7FFF, 0x7F7F),
}


def _check_finite(stored: ByteRows, kind: GgmlType) -> None:
    if kind not in _FLOAT_BITS:
        return
    dtype, mask, largest = _FLOAT_BITS[kind]
    bits = stored.view(dtype)
    magnitudes = bits & bits.dtype.type(mask)
    if magnitudes.max() > largest:
        row, column = np.argwhere(magnitudes > largest)[0]
        raise NonFiniteError(
            f"the weight in row {row} of these, column {column}, is NaN or infinite; the checkpoint is damaged"
        )


class _OutputFile:
    """The partial file, written at offsets from any thread."""

    def __init__(self, path: Path, n_bytes: int, *, keep: bool) -> None:
        self._file = path.open("r+b" if keep else "w+b", buffering=0)
        self._file.truncate(n_bytes)
        self._seek_lock = threading.Lock()

    def write(self, offset: int, data: memoryview | bytes) -> None:
        view = memoryview(data)
        while view:
            n_written = self._write_some(offset, view)
            view = view[n_written:]
            offset += n_written

    def _write_some(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._file.fileno(), view, offset)
        with self._seek_lock:  # Windows has no positioned write
            self._file.seek(offset)
            return self._file.write(view) or 0

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        self.sync()
        self.close()

    def close(self) -> None:
        self._file.close()


def _source_files(plan: Plan) -> set[Path]:
    return {file.path for planned in plan.tensors for file in planned.tensor.source.files}


def _check_space(plan: Plan, output: Path) -> None:
    present = _allocated_bytes(partial_of(output))
    free = shutil.disk_usage(output.parent).free
    if plan.n_bytes - present > free:
        raise OutputError(
            f"{output} needs {plan.n_bytes:,} bytes, {free:,} are free in {output.parent}; "
            "free some space or write elsewhere"
        )


def _allocated_bytes(path: Path) -> int:
    with contextlib.suppress(OSError):
        stat = path.stat()
        return getattr(stat, "st_blocks", stat.st_size // 512) * 512
    return 0


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable, where directories can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
