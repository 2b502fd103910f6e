"""Letting a model write: several sequences side by side, each with random numbers of its own."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gemma4_quant.errors import InputError
from gemma4_quant.runner.sampling import SamplingOptions, sample
from gemma4_quant.runner.session import LOGITS_BYTES, MICRO_BATCH_TOKENS, Session, SessionOptions
from gemma4_quant.runner.vocabulary import Vocabulary
from gemma4_quant.runner.weights import LoadedModel, Tokens

N_SEQUENCES = 32
"""Sequences side by side: reading the weights, which takes most of the time, is shared by all."""


@dataclass
class _Writer:
    """A sequence that is being written: `tokens` are what was read and said so far."""

    index: int
    n_prompt: int
    tokens: list[int]
    rng: np.random.Generator = field(repr=False)


def generate(
    model: LoadedModel,
    prompts: Sequence[Tokens],
    options: SamplingOptions,
    *,
    n_ctx: int,
    n_sequences: int = N_SEQUENCES,
    n_threads: int | None = None,
    stops_at_turn: bool = True,
    finished: Callable[[int, Tokens], bool] | None = None,
) -> list[Tokens]:
    """Let a model continue prompts; returns what it said to each, without the token that ended it.

    n_ctx: most tokens of a prompt with its answer. n_sequences: most prompts at a time. stops_at_turn: end with the
    model's turn; otherwise only where the text ends. finished: called with the index and the answer as each ends;
    when it returns True the others stop where they are, and prompts that were not begun give nothing. Reproducible
    bit for bit for the same options, prompts and thread count. Raises InputError for a prompt that is empty or fills
    the context, RunError and NonFiniteError when the model fails.
    """
    options.check()
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < n_ctx:
            raise InputError(f"prompt {number} has {len(prompt)} tokens; a context of {n_ctx} needs 1 to {n_ctx - 1}")
    if not prompts:
        return []
    most_rows = max(1, LOGITS_BYTES // (4 * model.n_vocab))
    together = min(n_sequences, len(prompts), most_rows)
    n_batch = max(MICRO_BATCH_TOKENS, together)
    session_options = SessionOptions(
        n_ctx=n_ctx, n_sequences=together, n_batch=n_batch, n_outputs=together, n_threads=n_threads
    )
    with Session(model, session_options) as session:
        generator = _Generator(session, options, n_ctx, stops_at_turn=stops_at_turn, finished=finished)
        return generator.run(prompts)


class _Generator:
    def __init__(
        self,
        session: Session,
        options: SamplingOptions,
        n_ctx: int,
        *,
        stops_at_turn: bool,
        finished: Callable[[int, Tokens], bool] | None,
    ) -> None:
        self._session = session
        self._options = options
        self._n_ctx = n_ctx
        self._vocabulary = Vocabulary(session.model)
        self._stops_at_turn = stops_at_turn
        self._finished = finished

    def run(self, prompts: Sequence[Tokens]) -> list[Tokens]:
        answers = [np.empty(0, np.int32) for _ in prompts]
        waiting = deque(enumerate(prompts))
        slots: list[_Writer | None] = [None] * self._session.options.n_sequences
        while waiting or any(slots):
            free = [sequence for sequence, writer in enumerate(slots) if writer is None][: len(waiting)]
            for sequence in free:
                slots[sequence] = self._begin(*waiting.popleft())
            self._read({sequence: writer for sequence in free if (writer := slots[sequence])})
            for sequence in self._step(slots):
                writer = slots[sequence]
                assert writer is not None
                slots[sequence] = None
                answers[writer.index] = _said(writer)
                if self._finished is not None and self._finished(writer.index, answers[writer.index]):
                    for rest in filter(None, slots):
                        answers[rest.index] = _said(rest)
                    return answers
        return answers

    def _begin(self, index: int, prompt: Tokens) -> _Writer:
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._options.seed, index])))
        return _Writer(index, len(prompt), prompt.tolist(), rng)

    def _read(self, begun: Mapping[int, _Writer]) -> None:
        """Read prompts into sequences, but for their last tokens, which the next step reads."""
        for sequence in begun:
            self._session.forget(sequence)
        lengths = [writer.n_prompt - 1 for writer in begun.values()]
        tokens = np.array([token for writer in begun.values() for token in writer.tokens[:-1]], np.int32)
        positions = np.array([position for length in lengths for position in range(length)], np.int32)
        sequences = np.repeat(list(begun), lengths).astype(np.int32)
        n_batch = self._session.options.n_batch
        for start in range(0, len(tokens), n_batch):
            piece = slice(start, start + n_batch)
            unwanted = np.zeros(len(tokens[piece]), np.bool_)
            self._session.decode_tokens(tokens[piece], positions[piece], sequences[piece], unwanted)

    def _step(self, slots: Sequence[_Writer | None]) -> list[int]:
        """Say one token in each sequence; returns the sequences that have ended."""
        active = [(sequence, writer) for sequence, writer in enumerate(slots) if writer is not None]
        logits = self._session.decode_tokens(
            np.array([writer.tokens[-1] for _, writer in active], np.int32),
            np.array([len(writer.tokens) - 1 for _, writer in active], np.int32),
            np.array([sequence for sequence, _ in active], np.int32),
            np.ones(len(active), np.bool_),
        )
        ended = []
        for row, (sequence, writer) in zip(logits, active, strict=True):
            token = sample(row, self._options, writer.rng)
            if self._ends(token):
                ended.append(sequence)
                continue
            writer.tokens.append(token)
            if len(writer.tokens) >= self._n_ctx or len(writer.tokens) - writer.n_prompt >= self._options.n_tokens:
                ended.append(sequence)
        return ended

    def _ends(self, token: int) -> bool:
        if self._stops_at_turn:
            return self._vocabulary.ends_turn(token)
        return self._vocabulary.ends_text(token)


def _said(writer: _Writer) -> Tokens:
    return np.array(writer.tokens[writer.n_prompt :], np.int32)
