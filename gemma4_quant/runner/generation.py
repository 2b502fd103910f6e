"""Letting a model write: several sequences side by side, each with random numbers of its own."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gemma4_quant.errors import InputError
from gemma4_quant.runner.sampling import SamplingOptions, sample
from gemma4_quant.runner.session import LOGITS_BYTES, MICRO_BATCH_TOKENS, Session, SessionOptions
from gemma4_quant.runner.vocabulary import Vocabulary
from gemma4_quant.runner.weights import LoadedModel, Tokens

N_SEQUENCES = 32
"""Sequences side by side: reading the weights, which takes most of the time, is shared by all."""


@dataclass(frozen=True)
class Opening:
    """What a model goes on from.

    tokens: (n,) int32, what it has read. stream: which random numbers it draws, so that the same opening can be
    continued differently. stops_at_turn: it stops at the end of its turn, else only where the text ends.
    """

    tokens: Tokens
    stream: int = 0
    stops_at_turn: bool = True


def generate(
    model: LoadedModel,
    openings: Sequence[Opening],
    options: SamplingOptions,
    *,
    n_ctx: int,
    n_sequences: int = N_SEQUENCES,
    n_threads: int | None = None,
    said: Callable[[int], None] | None = None,
) -> list[Tokens]:
    """Let a model go on from openings; returns what it said to each, without the token that ended it.

    n_ctx: most tokens of an opening with what follows. n_sequences: most texts at a time. said: told how many tokens
    were said in each step. Reproducible bit for bit for the same arguments and thread count. Raises InputError for an
    opening that is empty or fills the context, RunError and NonFiniteError when the model fails.
    """
    options.check()
    for number, opening in enumerate(openings):
        if not 0 < len(opening.tokens) < n_ctx:
            raise InputError(
                f"opening {number} has {len(opening.tokens)} tokens; a context of {n_ctx} takes 1 to {n_ctx - 1}"
            )
    if not openings:
        return []
    together = min(n_sequences, len(openings), max(1, LOGITS_BYTES // (4 * model.n_vocab)))
    session_options = SessionOptions(
        n_ctx=n_ctx,
        n_sequences=together,
        n_batch=max(MICRO_BATCH_TOKENS, together),
        n_outputs=together,
        n_threads=n_threads,
    )
    writers = [_Writer(opening, options.seed) for opening in openings]
    with Session(model, session_options) as session:
        _Generator(session, options, said).run(writers)
    return [np.array(writer.tokens[writer.n_read :], np.int32) for writer in writers]


class _Writer:
    """A text that is being written: `tokens` are what was read and said so far."""

    def __init__(self, opening: Opening, seed: int) -> None:
        self.n_read = len(opening.tokens)
        self.tokens: list[int] = opening.tokens.tolist()
        self.stops_at_turn = opening.stops_at_turn
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, opening.stream])))


class _Generator:
    def __init__(self, session: Session, options: SamplingOptions, said: Callable[[int], None] | None) -> None:
        self._session = session
        self._options = options
        self._said = said
        self._vocabulary = Vocabulary(session.model)

    def run(self, writers: Sequence[_Writer]) -> None:
        """Write until all have ended; where one ends, the next begins in its place."""
        waiting = deque(writers)
        active: dict[int, _Writer] = {}
        while waiting or active:
            free = [sequence for sequence in range(self._session.options.n_sequences) if sequence not in active]
            begun = {sequence: waiting.popleft() for sequence in free[: len(waiting)]}
            self._read(begun)
            active = dict(sorted({**active, **begun}.items()))
            ended = self._step(active)
            active = {sequence: writer for sequence, writer in active.items() if sequence not in ended}

    def _read(self, begun: Mapping[int, _Writer]) -> None:
        """Read prompts into sequences, but for their last tokens, which the next step reads."""
        for sequence in begun:
            self._session.forget(sequence)
        lengths = [writer.n_read - 1 for writer in begun.values()]
        tokens = np.array([token for writer in begun.values() for token in writer.tokens[:-1]], np.int32)
        positions = np.array([position for length in lengths for position in range(length)], np.int32)
        sequences = np.repeat(list(begun), lengths).astype(np.int32)
        n_batch = self._session.options.n_batch
        for start in range(0, len(tokens), n_batch):
            piece = slice(start, start + n_batch)
            unwanted = np.zeros(len(tokens[piece]), np.bool_)
            self._session.decode_tokens(tokens[piece], positions[piece], sequences[piece], unwanted)

    def _step(self, active: Mapping[int, _Writer]) -> list[int]:
        """Say one token in each sequence; returns the sequences that have ended."""
        writers = active.values()
        logits = self._session.decode_tokens(
            np.array([writer.tokens[-1] for writer in writers], np.int32),
            np.array([len(writer.tokens) - 1 for writer in writers], np.int32),
            np.array(list(active), np.int32),
            np.ones(len(active), np.bool_),
        )
        ended = [
            sequence
            for row, (sequence, writer) in zip(logits, active.items(), strict=True)
            if not self._says(writer, sample(row, self._options, writer.rng))
        ]
        if self._said is not None:
            self._said(len(active))
        return ended

    def _says(self, writer: _Writer, token: int) -> bool:
        """Take a token unless it ends the answer; tell whether the answer goes on."""
        ends = self._vocabulary.ends_turn if writer.stops_at_turn else self._vocabulary.ends_text
        if ends(token):
            return False
        writer.tokens.append(token)
        n_said = len(writer.tokens) - writer.n_read
        return len(writer.tokens) < self._session.options.n_ctx and n_said < self._options.n_tokens
