"""Note what is written while work goes on, on disk where that is wanted, so that a kill costs little."""

import threading
from collections.abc import Iterable, Sequence
from types import TracebackType

from gemma4_quant.writing.output import Output

_INTERVAL_S = 0.5
"""How often; what a crash may cost beyond the tensors under way."""


class Committer:
    """A thread that commits finished tensors to their outputs; a context manager."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        """Prepare; the thread starts on entering."""
        self._done: dict[Output, list[str]] = {output: [] for output in outputs}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)

    def __enter__(self) -> "Committer":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread; note what is finished, unless the work failed for good. Raises OSError."""
        self._stop.set()
        self._thread.join()
        if kind is None or issubclass(kind, KeyboardInterrupt | OSError):
            self._commit()
        if kind is None and self._error is not None:
            raise self._error

    def add(self, output: Output, names: Iterable[str]) -> None:
        """Take tensors whose bytes have all been written; raises the OSError of an earlier commit."""
        with self._lock:
            self._done[output] += names
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S) and self._error is None:
            self._commit()

    def _commit(self) -> None:
        with self._lock:
            done = self._done
            self._done = {output: [] for output in done}
        for output, names in done.items():
            try:
                output.commit(names)
            except OSError as error:
                self._error = self._error or error
