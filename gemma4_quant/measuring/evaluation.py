"""Scoring sessions on a text: piece by piece, all side by side, so that no logits are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from gemma4_quant.errors import Gemma4QuantError, NonFiniteError, RunError
from gemma4_quant.measuring.decoding import Piece, groups, pieces
from gemma4_quant.measuring.kernels import Logits, Targets
from gemma4_quant.measuring.position_scores import PositionScores, joined, negative_log_likelihoods
from gemma4_quant.measuring.references import ModelReference, Predictions, Reference
from gemma4_quant.measuring.score_store import ScoreStore
from gemma4_quant.measuring.scored_text import ScoredText
from gemma4_quant.progress import Progress
from gemma4_quant.runner.session import Session, SessionOptions


@dataclass(frozen=True)
class Candidate:
    """A session to score, and which row of the store its scores go to."""

    session: Session
    row: int


def evaluate(
    candidates: Sequence[Candidate],
    text: ScoredText,
    reference: Reference | None,
    store: ScoreStore,
    options: SessionOptions,
    progress: Progress,
) -> dict[int, Gemma4QuantError]:
    """Score sessions on a text; one of them may be the reference's own.

    options: the size that all sessions have; without candidates the reference's predictions are asked for alone.
    Scores go to the store, where those of an earlier run are not computed again. Returns, by row, why sessions
    failed; the others go on without them. Raises RunError and NonFiniteError when the reference fails.
    """
    windows = [passage.window for passage in text.passages]
    run = _Run(candidates, reference, store)
    at = 0
    progress.start("evaluate", len(windows), "chunk")
    try:
        for group in groups(windows, options.n_sequences):
            n_scored = int(text.counts[group.start : group.stop].sum())
            run.score(pieces(windows[group.start : group.stop], options), at, n_scored)
            at += n_scored
            progress.advance(len(group))
    finally:
        progress.finish()
    return run.failures


class _Run:
    """Runs sessions in step over the same pieces."""

    def __init__(self, candidates: Sequence[Candidate], reference: Reference | None, store: ScoreStore) -> None:
        self._active = list(candidates)
        self._reference = reference
        self._own = reference.session if isinstance(reference, ModelReference) else None
        self._records = reference is not None and reference.records
        self._store = store
        self.failures: dict[int, Gemma4QuantError] = {}

    def score(self, group: Sequence[Piece], first: int, n_scored: int) -> None:
        """Score a group of windows whose scored positions begin with number `first`."""
        span = slice(first, first + n_scored)
        todo = [candidate for candidate in self._active if not self._store.has(candidate.row, span)]
        if not todo and not self._records:
            return
        parts: dict[int, list[PositionScores]] = {candidate.row: [] for candidate in todo}
        if self._reference is not None:
            self._reference.begin()
        for candidate in todo:
            if candidate.session is not self._own:
                candidate.session.clear()
        at = first
        for piece in group:
            base = None if self._reference is None else self._reference.predictions(piece, at)
            for candidate in [each for each in todo if each.row not in self.failures]:
                self._score_piece(candidate, piece, base, parts[candidate.row])
            at += len(piece.targets)
        for candidate in todo:
            if candidate.row not in self.failures:
                self._store.put(candidate.row, first, joined(parts[candidate.row]))
        self._active = [candidate for candidate in self._active if candidate.row not in self.failures]

    def _score_piece(
        self, candidate: Candidate, piece: Piece, base: Predictions | None, found: list[PositionScores]
    ) -> None:
        session = candidate.session
        try:
            if session is self._own and base is not None:
                if len(piece.targets):
                    found.append(base.own_scores(piece.targets, session.n_threads))
                return
            logits = piece.run(session)
            if len(piece.targets):
                found.append(_scores(logits, piece.targets, base, session.n_threads))
        except (RunError, NonFiniteError) as error:
            name = session.model.path.name
            self.failures[candidate.row] = error if name in str(error) else type(error)(f"{name}: {error}")


def _scores(logits: Logits, targets: Targets, base: Predictions | None, n_threads: int) -> PositionScores:
    if base is None:
        return PositionScores(negative_log_likelihoods(logits, targets, n_threads=n_threads))
    return base.compare(logits, targets, n_threads)
