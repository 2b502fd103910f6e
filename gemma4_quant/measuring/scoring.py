"""Scoring files on texts: which are loaded when, what they are compared with, and what is kept on the way."""

import hashlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from gemma4_quant import __version__
from gemma4_quant.errors import Gemma4QuantError, NonFiniteError, RunError
from gemma4_quant.measuring.capacity import free_bytes, logits_bytes, refuse_too_big, run_bytes
from gemma4_quant.measuring.compact_reference import CompactFile, CompactReference, CompactWriter
from gemma4_quant.measuring.decoding import RunOptions, session_options
from gemma4_quant.measuring.evaluation import Candidate, evaluate
from gemma4_quant.measuring.fairness import identity_of
from gemma4_quant.measuring.position_scores import PositionScores
from gemma4_quant.measuring.references import ModelReference, Recorder, StoredReference
from gemma4_quant.measuring.score_store import ScoreStore
from gemma4_quant.measuring.scored_text import ScoredText
from gemma4_quant.model import Model
from gemma4_quant.progress import Progress
from gemma4_quant.runner.llama_library import versions
from gemma4_quant.runner.session import Session
from gemma4_quant.runner.weights import LoadedModel

logger = logging.getLogger(__name__)

TextMaker = Callable[[LoadedModel], ScoredText]
"""Tokenises, frames and cuts the texts for a model."""

RecorderMaker = Callable[[LoadedModel, ScoredText], AbstractContextManager[Recorder]]
"""Opens what a reference's predictions on a text are stored in."""

OpenStored = Callable[[], StoredReference]
"""Opens stored predictions, from their beginning."""


@dataclass(frozen=True)
class ScoringOptions:
    """How files are loaded and run.

    n_gpu_layers, devices: see LoadedModel. force: load also when memory looks too small. folder: where scores are
    kept while they are computed; None keeps them in memory. resume: go on with what is kept there.
    """

    run: RunOptions = field(default_factory=RunOptions)
    n_gpu_layers: int | None = None
    devices: tuple[str, ...] | None = None
    force: bool = False
    folder: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of scoring one file. scores: None when it failed, as `failure` says."""

    text: ScoredText
    scores: PositionScores | None
    failure: str | None


@dataclass(frozen=True)
class Scored:
    """What came of scoring files, in their order. storage_error: see CompactReference.storage_error."""

    outcomes: tuple[Outcome, ...]
    storage_error: float | None = None


class Scorer:
    """Scores files under the same options."""

    def __init__(self, options: ScoringOptions, progress: Progress) -> None:
        """Take options."""
        self._options = options
        self._progress = progress
        self._stores: list[ScoreStore] = []

    def alone(self, models: Sequence[Model], make_text: TextMaker, open_stored: OpenStored | None = None) -> Scored:
        """Score files one after another, with stored predictions or without any."""
        outcomes: list[Outcome] = []
        errors: list[float] = []
        for model in models:
            self._refuse_too_big([model])
            with self._load(model) as loaded:
                text = make_text(loaded)
                stored = None if open_stored is None else open_stored()
                outcomes += self._evaluate([loaded], text, stored, None)
                if stored is not None and stored.storage_error is not None:
                    errors.append(stored.storage_error)
        return Scored(tuple(outcomes), max(errors, default=None))

    def beside(
        self,
        models: Sequence[Model],
        make_text: TextMaker,
        reference: Model,
        make_recorder: RecorderMaker | None = None,
    ) -> Scored:
        """Score files beside a reference, which may be one of them; one at a time when memory is short."""
        others = [model for model in models if model is not reference]
        together = [reference, *others]
        if self._options.force or self._fits(together):
            return self._all_at_once(models, make_text, reference, make_recorder)
        for model in together:
            self._refuse_too_big([model])
        if not others:
            return self._all_at_once(models, make_text, reference, make_recorder)
        logger.warning(
            "not all models fit the memory: the reference's predictions are stored compactly, and one model is "
            "loaded at a time"
        )
        return self._one_at_a_time(models, make_text, reference)

    def discard(self) -> None:
        """Delete what was kept of these scores: they are in the report."""
        for store in self._stores:
            store.discard()

    def _all_at_once(
        self,
        models: Sequence[Model],
        make_text: TextMaker,
        reference: Model,
        make_recorder: RecorderMaker | None,
    ) -> Scored:
        with ExitStack() as stack:
            base = stack.enter_context(self._load(reference))
            text = make_text(base)
            recorder = None if make_recorder is None else stack.enter_context(make_recorder(base, text))
            loaded = [base if model is reference else stack.enter_context(self._load(model)) for model in models]
            return Scored(tuple(self._evaluate(loaded, text, base, recorder)))

    def _one_at_a_time(self, models: Sequence[Model], make_text: TextMaker, reference: Model) -> Scored:
        """Store the reference's predictions for the moment, then compare the others with what is stored."""
        with tempfile.TemporaryDirectory(prefix="gemma4-quant-") as folder:
            path = Path(folder) / "reference"
            with self._load(reference) as base:
                text = make_text(base)
                identity = identity_of(reference.path, reference.metadata)
                with CompactWriter(path, base.n_vocab, text, identity) as writer:
                    own = self._evaluate([base], text, base, writer)
            others = [model for model in models if model is not reference]
            scored = self.alone(others, lambda _: text, lambda: CompactReference(CompactFile(path)))
        outcomes = iter(scored.outcomes)
        in_order = [own[0] if model is reference else next(outcomes) for model in models]
        return Scored(tuple(in_order), scored.storage_error)

    def _evaluate(
        self,
        loaded: Sequence[LoadedModel],
        text: ScoredText,
        reference: LoadedModel | StoredReference | None,
        recorder: Recorder | None,
    ) -> list[Outcome]:
        """Score loaded models side by side."""
        runners = list(dict.fromkeys([*([reference] if isinstance(reference, LoadedModel) else []), *loaded]))
        windows = [passage.window for passage in text.passages]
        sizes = session_options(windows, runners[0].n_vocab, len(runners), self._options.run, text.n_batch)
        with ExitStack() as stack:
            store = stack.enter_context(self._store(loaded, reference, text, keeps=recorder is None))
            sessions = {model: stack.enter_context(Session(model, sizes)) for model in runners}
            candidates = [Candidate(sessions[model], row) for row, model in enumerate(loaded)]
            base = ModelReference(sessions[reference], recorder) if isinstance(reference, LoadedModel) else reference
            try:
                failures = evaluate(candidates, text, base, store, sizes, self._progress)
            except (RunError, NonFiniteError) as error:
                if store.path is None:
                    raise
                raise type(error)(f"{error}; what was scored before is kept: add --resume to go on") from error
            found = [store.scores(row) for row in range(len(loaded))]
        return [
            Outcome(text, scores, None if row not in failures else _text_of(failures[row]))
            for row, scores in enumerate(found)
        ]

    def _store(
        self,
        loaded: Sequence[LoadedModel],
        reference: LoadedModel | StoredReference | None,
        text: ScoredText,
        *,
        keeps: bool,
    ) -> ScoreStore:
        options, key = self._options, self._key(loaded, reference, text)
        path = None if options.folder is None or not keeps else options.folder / f"{key.hex()[:32]}.scores"
        if path is not None and not options.resume:
            path.unlink(missing_ok=True)
        store = ScoreStore(len(loaded), text.n_positions, path, key=key)
        self._stores.append(store)
        return store

    def _key(
        self, loaded: Sequence[LoadedModel], reference: LoadedModel | StoredReference | None, text: ScoredText
    ) -> bytes:
        """Return SHA-256 of all that the scores depend on."""
        state = hashlib.sha256()
        runners = [*loaded, *([reference] if isinstance(reference, LoadedModel) else [])]
        for model in runners:
            for tensor in model.file.tensors:
                state.update(tensor.source.identity + b"\0")
            state.update(b"\n")
        identity = reference.identity if not isinstance(reference, LoadedModel | None) else b"model"
        options = self._options
        parts = (
            __version__,
            versions(),
            text.digest(),
            identity,
            options.run.key_type,
            options.run.value_type,
            options.run.flash_attention,
            options.n_gpu_layers,
            options.devices,
        )
        state.update(repr(parts).encode())
        return state.digest()

    def _load(self, model: Model) -> LoadedModel:
        return LoadedModel(model.path, n_gpu_layers=self._options.n_gpu_layers, devices=self._options.devices)

    def _n_bytes(self, models: Sequence[Model]) -> int:
        run = self._options.run
        return logits_bytes() + sum(run_bytes(model, 512, 4, run.key_type, run.value_type) for model in models)

    def _fits(self, models: Sequence[Model]) -> bool:
        free = free_bytes()
        return free is None or self._n_bytes(models) <= free

    def _refuse_too_big(self, models: Sequence[Model]) -> None:
        if not self._options.force:
            refuse_too_big(models, self._n_bytes(models))


def _text_of(error: Gemma4QuantError) -> str:
    return str(error)
