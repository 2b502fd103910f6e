"""Scoring models on a text: chunk by chunk, all models side by side, so that no logits are kept.

Chunks and scored positions are those of llama-perplexity: the second half of each chunk, where every token has
at least half a context before it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemma4_quant.cores import n_cores
from gemma4_quant.errors import InputError
from gemma4_quant.ggml import GgmlType
from gemma4_quant.measuring.metrics import (
    Comparison,
    DivergenceSummary,
    Estimate,
    Float64,
    compare,
    joined,
    negative_log_likelihoods,
    perplexity,
    summarise,
)
from gemma4_quant.progress import Progress
from gemma4_quant.runner.session import BATCH_TOKENS, LOGITS_BYTES, Session, SessionOptions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.text import Chunks, chunk_text


@dataclass(frozen=True)
class EvaluationOptions:
    """How to score.

    n_ctx: tokens of a chunk. n_chunks: at most so many; None for the whole text. n_threads: None for all cores.
    cache_type: type of the KV cache; F16 as llama.cpp's tools, F32 to compare exactly.
    """

    n_ctx: int = 512
    n_chunks: int | None = None
    n_threads: int | None = None
    cache_type: GgmlType = GgmlType.F16
    flash_attention: bool | None = None


@dataclass(frozen=True)
class Score:
    """What a model scored on a text; divergence is None without a reference, and for the reference itself."""

    perplexity: Estimate
    divergence: DivergenceSummary | None
    n_chunks: int
    n_positions: int


def evaluate(
    models: Sequence[LoadedModel],
    text: Path,
    options: EvaluationOptions,
    progress: Progress,
    *,
    reference: LoadedModel | None = None,
) -> list[Score]:
    """Score models on a text, against a reference when there is one (which may be one of them).

    Returns one score a model, in order. Raises TextError for a text that is too short, InputError when the models
    do not share the reference's vocabulary, RunError and NonFiniteError when one fails.
    """
    runners = list(models) if reference is None or reference in models else [reference, *models]
    refuse_other_vocabularies(runners)
    chunks = chunk_text(runners[0], text, options.n_ctx, options.n_chunks)
    with ExitStack() as stack:
        sessions = {
            id(model): stack.enter_context(Session(model, _session_options(model, chunks, options)))
            for model in runners
        }
        order = [sessions[id(model)] for model in models]
        scorer = _Scorer(
            order, None if reference is None else sessions[id(reference)], options.n_threads or n_cores()
        )
        progress.start("evaluate", len(chunks.tokens), "chunk")
        try:
            n_together = min(session.options.n_sequences for session in sessions.values())
            for start in range(0, len(chunks.tokens), n_together):
                group = chunks.tokens[start : start + n_together]
                scorer.score(group)
                progress.advance(len(group))
        finally:
            progress.finish()
    return scorer.results(len(chunks.tokens))


def refuse_other_vocabularies(models: Sequence[LoadedModel]) -> None:
    """Raise InputError unless all models have the same tokens in the same order."""
    first = models[0]
    for other in models[1:]:
        if other.n_vocab != first.n_vocab:
            raise InputError(
                f"{other.path.name} has {other.n_vocab} tokens and {first.path.name} {first.n_vocab}: "
                "their predictions cannot be compared; give a reference with the same vocabulary"
            )
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.model"):
            if other.file.metadata.get(key) != first.file.metadata.get(key):
                raise InputError(
                    f"{other.path.name} and {first.path.name} differ in {key}: their predictions cannot be compared; "
                    "give a reference with the same tokenizer"
                )


def _session_options(model: LoadedModel, chunks: Chunks, options: EvaluationOptions) -> SessionOptions:
    """Size a session: as many chunks at a time as fill a batch, as many logits as fit the memory for them."""
    n_chunks, n_ctx = chunks.tokens.shape
    most_outputs = max(1, LOGITS_BYTES // (4 * model.n_vocab))
    n_scored = n_ctx - 1 - n_ctx // 2
    together = max(1, min(n_chunks, BATCH_TOKENS // n_ctx, most_outputs // max(1, n_scored)))
    return SessionOptions(
        n_ctx=n_ctx,
        n_sequences=together,
        n_batch=min(BATCH_TOKENS, together * n_ctx),
        n_outputs=min(most_outputs, together * max(1, n_scored)),
        n_threads=options.n_threads,
        key_type=options.cache_type,
        value_type=options.cache_type,
        flash_attention=options.flash_attention,
    )


@dataclass(frozen=True)
class _Piece:
    """Logits at consecutive scored positions of a few chunks; logits (n_chunks · n_positions, n_vocab)."""

    start: int
    stop: int
    logits: npt.NDArray[np.float32]


def scored_pieces(session: Session, tokens: npt.NDArray[np.int32]) -> Iterator[_Piece]:
    """Evaluate chunks from empty, and yield logits of their second halves in pieces that fit the session.

    tokens: (n_chunks, n_ctx) int32, at most as many chunks as the session has sequences. Logits are valid until
    the next piece is asked for. The last token of a chunk predicts nothing that is scored and is not evaluated.
    """
    n_chunks, n_ctx = tokens.shape
    first = n_ctx // 2
    session.clear()
    start = 0
    while start < n_ctx - 1:
        stop = min(n_ctx - 1, start + session.options.n_batch // n_chunks)
        stop = min(stop, max(start, first) + session.options.n_outputs // n_chunks)
        skipped = max(0, min(stop, first) - start)
        logits = session.decode(tokens[:, start:stop], start, slice(skipped, None))
        if start + skipped < stop:
            yield _Piece(start + skipped, stop, logits.reshape(-1, logits.shape[-1]))
        start = stop


class _Scorer:
    """Runs sessions in step over the same chunks and gathers a few numbers for each position."""

    def __init__(self, sessions: list[Session], reference: Session | None, n_threads: int) -> None:
        self._sessions = sessions
        self._reference = reference
        self._n_threads = n_threads
        self._nll: list[list[Float64]] = [[] for _ in sessions]
        self._comparisons: list[list[Comparison]] = [[] for _ in sessions]

    def score(self, tokens: npt.NDArray[np.int32]) -> None:
        """Score a group of chunks with every session."""
        runners = {id(s): s for s in [*([self._reference] if self._reference else []), *self._sessions]}
        for pieces in zip(*(scored_pieces(session, tokens) for session in runners.values()), strict=True):
            found = dict(zip(runners, pieces, strict=True))
            self._score_piece(found, tokens)

    def _score_piece(self, found: dict[int, _Piece], tokens: npt.NDArray[np.int32]) -> None:
        some = next(iter(found.values()))
        targets = np.ascontiguousarray(tokens[:, some.start + 1 : some.stop + 1]).reshape(-1)
        base = None if self._reference is None else found[id(self._reference)].logits
        base_nll = None if base is None else negative_log_likelihoods(base, targets, n_threads=self._n_threads)
        for i, session in enumerate(self._sessions):
            logits = found[id(session)].logits
            if base is None or base_nll is None:
                self._nll[i].append(negative_log_likelihoods(logits, targets, n_threads=self._n_threads))
            elif session is self._reference:
                self._nll[i].append(base_nll)
            else:
                comparison = compare(base, logits, targets, base_nll, n_threads=self._n_threads)
                self._nll[i].append(comparison.candidate_nll)
                self._comparisons[i].append(comparison)

    def results(self, n_chunks: int) -> list[Score]:
        """Return the scores of all chunks so far."""
        scores = []
        for nll_parts, comparisons in zip(self._nll, self._comparisons, strict=True):
            nll = np.concatenate(nll_parts)
            divergence = summarise(joined(comparisons)) if comparisons else None
            scores.append(Score(perplexity(nll), divergence, n_chunks, len(nll)))
        return scores
