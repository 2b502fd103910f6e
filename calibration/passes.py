"""Running chunks through a model while an accumulator watches: batch after batch, taken up where it was left."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma4_quant.calibration.accumulate import FEWEST_INPUTS, Accumulator
from gemma4_quant.calibration.resume import ResumeFile
from gemma4_quant.progress import Progress
from gemma4_quant.runner.session import BATCH_TOKENS, LOGITS_BYTES, MICRO_BATCH_TOKENS, Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel


def session_options(model: LoadedModel, n_chunks: int, n_ctx: int, n_threads: int | None) -> SessionOptions:
    """Size a session for a text of `n_chunks` chunks: as many side by side as llama-imatrix evaluates.

    Every position asks for logits, or llama.cpp would skip the last layer's feed-forward for it; so the memory for
    logits bounds the batch.
    """
    n_batch = max(1, min(BATCH_TOKENS, LOGITS_BYTES // (4 * model.n_vocab)))
    together = max(1, min(n_chunks, n_batch // n_ctx))
    n_batch = min(n_batch, together * n_ctx)
    return SessionOptions(n_ctx=n_ctx, n_sequences=together, n_batch=n_batch, n_outputs=n_batch, n_threads=n_threads)


@dataclass(frozen=True)
class PartOfText:
    """Chunks to run, (n_chunks, n_ctx) int32, and where in a text of n_whole chunks they begin."""

    tokens: npt.NDArray[np.int32]
    first: int
    n_whole: int

    def without(self, n_chunks: int) -> "PartOfText":
        """Return what is left when the first chunks are done."""
        return PartOfText(self.tokens[n_chunks:], self.first + n_chunks, self.n_whole)


class Passes:
    """Runs chunks through a session, counts them, and saves what was gathered now and then.

    Parts of a text add up to the whole: batches are counted over the whole text, and of one that is not all in a
    part, as many positions of each chunk are computed at a time as in the whole batch. (Three chunks of 512 tokens
    alone would be computed in steps of 3·170 positions, and the last 3·2 are too few to be counted,
    Accumulator.wants. llama-imatrix loses them, wherever its text ends so, and we do where the whole text does.)
    """

    def __init__(
        self,
        session: Session,
        accumulator: Accumulator,
        state: ResumeFile,
        *,
        n_resumed: int = 0,
        after_batch: Callable[[int], None] = lambda _n_done: None,
    ) -> None:
        """Get ready.

        n_resumed: chunks whose statistics the accumulator holds already; so many of those given to `run` are skipped.
        after_batch: called with the number of chunks done.
        """
        self._session = session
        self._accumulator = accumulator
        self._state = state
        self._after_batch = after_batch
        self._n_resumed = n_resumed
        self.n_done = 0

    def run(
        self,
        label: str,
        chunks: PartOfText,
        progress: Progress,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run chunks until they are through or enough.

        is_enough: asked before each batch. What is done when something fails is saved before the failure goes on.
        Raises RunError and NonFiniteError.
        """
        n_skipped = min(max(0, self._n_resumed - self.n_done), len(chunks.tokens))
        self.n_done += n_skipped
        left = chunks.without(n_skipped)
        if not len(left.tokens) or is_enough():
            return
        progress.start(label, len(left.tokens), "chunk")
        try:
            for group, step in self._batches(left):
                self._run_batch(group, step)
                progress.advance(len(group))
                if is_enough():
                    break
        except BaseException:
            self._save()
            self._state.tell()
            raise
        finally:
            progress.finish()

    def _batches(self, part: PartOfText) -> Iterator[tuple[npt.NDArray[np.int32], int]]:
        """Yield chunks to evaluate side by side, and how many positions of them at a time."""
        options = self._session.options
        together, start = options.n_sequences, 0
        while start < len(part.tokens):
            number = part.first + start
            is_whole = number % together == 0 and len(part.tokens) - start >= min(together, part.n_whole - number)
            stop = min(start + together - number % together, len(part.tokens))
            most = options.n_batch // (stop - start)
            if not is_whole:
                most = min(most, max(MICRO_BATCH_TOKENS // together, -(-FEWEST_INPUTS // (stop - start))))
            yield part.tokens[start:stop], _even_step(options.n_ctx, most)
            start = stop

    def _run_batch(self, group: npt.NDArray[np.int32], step: int) -> None:
        session, n_ctx = self._session, self._session.options.n_ctx
        session.clear()
        for start in range(0, n_ctx, step):
            session.decode(group[:, start : start + step], start, slice(None))
        self._accumulator.end_batch()
        self.n_done += len(group)
        self._after_batch(self.n_done)
        if self._state.is_due():
            self._save()

    def _save(self) -> None:
        self._state.save(self._accumulator.entries(), self.n_done)


def _even_step(n_positions: int, most: int) -> int:
    """Return positions per decode, as even as can be: a short rest would not be counted (Accumulator.wants)."""
    n_steps = -(-n_positions // most)
    return -(-n_positions // n_steps)
