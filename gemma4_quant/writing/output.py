"""An output on its way to the disk: partial files for its shards, the journal, and what is left to do."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from gemma4_quant.formats.shards import shard_paths
from gemma4_quant.writing.destination import partial_of
from gemma4_quant.writing.journal import Journal
from gemma4_quant.writing.partial_file import PartialFile, sync_directory
from gemma4_quant.writing.plan import Plan, PlannedFile, PlannedTensor


class Output:
    """The files of one plan. Only tensors that were given to `commit` count as done for the next run."""

    def __init__(self, plan: Plan, path: Path, digest: str, *, durable: bool) -> None:
        """Lock the output; nothing is written yet.

        digest: says whether an earlier run's bytes are of use. durable: done means on disk, not only handed over to
        the system. Raises OutputError when another run is writing it, OSError when its directory cannot be written.
        """
        self.plan = plan
        self.paths = shard_paths(path, len(plan.files))
        self._durable = durable
        self._journal = Journal(path, digest, durable=durable)
        self._files: list[PartialFile] = []
        self._begun = False

    def begin(self) -> None:
        """Open the partial files and write their headers; go on with those of an earlier run if they are all there.

        Raises OSError.
        """
        self._begun = True
        if self._journal.is_complete and all(map(_is_finished, self.paths, self.plan.files)):
            return
        resumes = self._journal.resumes and all(map(_has_partial, self.paths, self.plan.files))
        if not resumes:
            self._journal.begin()
        for path, file in zip(self.paths, self.plan.files, strict=True):
            self._files.append(PartialFile(path, file.n_bytes, keep=resumes))
            self._files[-1].write(0, file.header)

    def remaining(self) -> Iterator[tuple[PlannedTensor, PartialFile]]:
        """Yield the tensors that are not done, with the file that each belongs in."""
        for target, file in zip(self._files, self.plan.files, strict=False):  # no files are open when all is done
            for planned in file.tensors:
                if not self._journal.has(planned.tensor.name):
                    yield planned, target

    def commit(self, done: Iterable[str]) -> None:
        """Note tensors whose bytes were all written before the call as done; raises OSError."""
        names = list(done)
        if self._durable:
            for file in self._files:
                file.sync()
        if names:
            self._journal.add(names)

    def finish(self) -> None:
        """Note that all is written, and close the files; from now on only renaming is left. Raises OSError."""
        if self._files:
            self.commit([])
            self._journal.complete()
        for file in self._files:
            file.close()

    def publish(self) -> None:
        """Give the files their names, the first shard's last: who finds it, finds all others. Raises OSError."""
        first, *others = self.paths
        if others and partial_of(first).exists():
            first.unlink(missing_ok=True)  # an older one would be read together with new shards
        for path in (*others, first):
            if partial_of(path).exists():
                partial_of(path).replace(path)
        if self._durable:
            sync_directory(first.parent)

    def forget(self) -> None:
        """Delete the journal of an output that has been published."""
        self._journal.remove()

    def close(self) -> None:
        """Stop writing; what is on disk stays for the next run."""
        for file in self._files:
            file.close()
        self._journal.close()

    def give_up(self, *, keep_done: bool) -> bool:
        """Stop writing and delete what was written, but for tensors that are done if `keep_done`.

        An output that has not begun is left as it was found. Returns whether there is something to go on with.
        """
        for file in self._files:
            file.close()
        keeps = self._journal.resumes if self._begun else not self._journal.is_new
        if keeps and (keep_done or not self._begun):
            self._journal.close()
            return self._begun
        for path in self.paths if self._begun else ():
            partial_of(path).unlink(missing_ok=True)
        self._journal.remove()
        return False


def _has_partial(path: Path, file: PlannedFile) -> bool:
    return _has_size(partial_of(path), file.n_bytes)


def _is_finished(path: Path, file: PlannedFile) -> bool:
    """Tell whether a complete file is still partial, or already has its name."""
    return _has_partial(path, file) or (not partial_of(path).exists() and _has_header(path, file))


def _has_size(path: Path, n_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == n_bytes


def _has_header(path: Path, file: PlannedFile) -> bool:
    if not _has_size(path, file.n_bytes):
        return False
    with path.open("rb") as found:
        return found.read(len(file.header)) == file.header
