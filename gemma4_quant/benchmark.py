"""Measuring GGUF files: size, perplexity, divergence from a reference, KV caches, tokens per second."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from gemma4_quant import __version__
from gemma4_quant.cores import n_cores
from gemma4_quant.errors import Gemma4QuantError, InputError
from gemma4_quant.measuring.bootstrap import BootstrapOptions
from gemma4_quant.measuring.cache_matrix import CacheOptions, measure_caches
from gemma4_quant.measuring.model_facts import hash_files, model_file
from gemma4_quant.measuring.reference_choice import (
    SaveOptions,
    check_fairness,
    open_reference,
    recorder_maker,
)
from gemma4_quant.measuring.results import BenchResult, CacheMatrix, Conditions, ModelResult
from gemma4_quant.measuring.scored_text import Domain, WindowOptions
from gemma4_quant.measuring.scoring import Outcome, Scored, Scorer, ScoringOptions
from gemma4_quant.measuring.speed_plan import SpeedPlan
from gemma4_quant.measuring.speed_runs import measure_speeds
from gemma4_quant.measuring.summaries import score_of
from gemma4_quant.measuring.text_choice import TextOptions, builtin_texts, make_text, path_domain
from gemma4_quant.model import Model
from gemma4_quant.progress import Progress, SilentProgress
from gemma4_quant.runner.devices import device_text
from gemma4_quant.runner.llama_library import versions
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.source import open_gguf
from gemma4_quant.texts.framing import Framing


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, and how.

    framing: None for turns where a model has a chat template, else raw. windows: how texts are cut. scoring: how
    models are loaded and run; its `force` also lets models differ from their reference. bootstrap: of the intervals.
    cache: types of KV caches to compare, None for none. speed: tests to time, None for none. save: where to store the
    reference's predictions, None for nowhere. own_tokens: tokens of the reference's own answers to be scored on as
    well. command: what repeats the run, for the report.
    """

    framing: Framing | None = None
    own_tokens: int = 0
    windows: WindowOptions = field(default_factory=WindowOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    bootstrap: BootstrapOptions = field(default_factory=BootstrapOptions)
    cache: CacheOptions | None = None
    speed: SpeedPlan | None = field(default_factory=SpeedPlan)
    save: SaveOptions | None = None
    command: tuple[str, ...] = ()


def bench(
    models: Sequence[Path],
    *,
    reference: Path | None = None,
    texts: Sequence[Domain | Path] | None = None,
    options: BenchOptions | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure GGUF files.

    reference: what divergence is measured from, a GGUF file, which may be one of `models`, or stored predictions.
    texts: what is scored, each path a domain; None for the built-in ones, or for those of stored predictions; without
    any, only speed is measured.
    Raises InputError and its kinds for files that cannot be used or compared, RunError when nothing can be run. What
    fails for one model alone is in its result.
    """
    return _Bench(models, reference, texts, options or BenchOptions(), progress or SilentProgress()).run()


class _Bench:
    """One run: everything is opened and checked before the first model is loaded."""

    def __init__(
        self,
        paths: Sequence[Path],
        reference: Path | None,
        texts: Sequence[Domain | Path] | None,
        options: BenchOptions,
        progress: Progress,
    ) -> None:
        self._started, self._time = datetime.now(UTC), time.monotonic()
        self._options, self._progress = options, progress
        if not paths and options.save is None:
            raise InputError("no model to measure; give at least one GGUF file")
        self._opened: dict[Path, Model] = {}
        self._models = [(path, self._open(path)) for path in paths]
        self._distinct = list({id(model): model for _, model in self._models}.values())
        self._reference = None if reference is None else open_reference(reference, self._open)
        self._texts = self._text_options(texts)
        self._check_inputs()
        self._forced = check_fairness(self._reference, self._distinct, force=options.scoring.force)
        if options.speed is not None:
            options.speed.check()

    def _text_options(self, texts: Sequence[Domain | Path] | None) -> TextOptions | None:
        options = self._options
        if texts is not None:
            domains = tuple(each if isinstance(each, Domain) else path_domain(each) for each in texts)
        elif self._reference is not None and not isinstance(self._reference.source, Model):
            domains = ()
        else:
            domains = builtin_texts()
        if not domains and not options.own_tokens:
            return None
        return TextOptions(domains, options.framing, options.windows, options.own_tokens, options.bootstrap.seed)

    def _open(self, path: Path) -> Model:
        """Open each file once, however often and under whatever name it is given."""
        key = path.resolve()
        if key not in self._opened:
            self._opened[key] = open_gguf(path)
        return self._opened[key]

    def _check_inputs(self) -> None:
        reference, texts, options = self._reference, self._texts, self._options
        is_stored = reference is not None and not isinstance(reference.source, Model)
        if is_stored and texts is not None:
            raise InputError("stored predictions bring their own text; leave out -f, or give the model they are of")
        if reference is not None and not is_stored and texts is None:
            raise InputError("divergence from a reference is measured on a text; give one (-f TEXT)")
        if options.save is not None and (reference is None or is_stored):
            raise InputError("predictions are stored of a reference; give the model (--reference MODEL.gguf)")
        if options.own_tokens and (reference is None or is_stored):
            raise InputError("a model's own answers are those of the reference; give it (--reference MODEL.gguf)")
        if options.cache is not None:
            options.cache.check()
        if options.cache is not None and texts is None:
            raise InputError("KV caches are compared on a text; give one (-f TEXT)")

    def run(self) -> BenchResult:
        """Measure everything."""
        hashes = hash_files(list(self._opened.values()), self._progress)
        scorer = Scorer(self._options.scoring, self._progress)
        scored = self._score(scorer, hashes)
        found = []
        for number, model in enumerate(self._distinct):
            outcome = None if scored is None else scored.outcomes[number]
            found.append(self._measured(model, outcome, hashes))
        results = tuple(
            replace(found[self._distinct.index(model)], file=model_file(path, model, hashes))
            for path, model in self._models
        )
        if not any(result.failure for result in results):
            scorer.discard()
        return self._whole(results, scored, hashes)

    def _score(self, scorer: Scorer, hashes: dict[Path, str]) -> Scored | None:
        reference, texts = self._reference, self._texts
        if reference is not None and not isinstance(reference.source, Model):
            return scorer.alone(self._distinct, reference.source.text, reference.source.reference)
        if texts is None:
            return None
        text_for = partial(make_text, options=texts, progress=self._progress)
        if reference is None:
            return scorer.alone(self._distinct, text_for)
        assert isinstance(reference.source, Model)
        recorder = recorder_maker(self._options.save, reference.source, hashes)
        return scorer.beside(self._distinct, text_for, reference.source, recorder)

    def _measured(self, model: Model, outcome: Outcome | None, hashes: dict[Path, str]) -> ModelResult:
        """Return all measurements of a model; what fails after others were made is noted, and they are kept."""
        options, failure = self._options, None if outcome is None else outcome.failure
        result = ModelResult(
            file=model_file(model.path, model, hashes),
            is_reference=self._reference is not None and model is self._reference.source,
            score=None,
            cache=None,
            speeds=None,
            peak_bytes=None,
            failure=failure,
        )
        if outcome is not None and outcome.scores is not None:
            score = score_of(outcome.scores, outcome.text, options.bootstrap, n_threads=self._n_threads)
            result = replace(result, score=score)
        if failure is not None:
            return result
        try:
            if options.cache is not None:
                result = replace(result, cache=self._caches(model, options.cache))
            if options.speed is not None:
                speeds = measure_speeds(model.path, options.speed, self._progress)
                peaks = [speed.peak_bytes for speed in speeds.speeds if speed.peak_bytes is not None]
                result = replace(result, speeds=speeds, peak_bytes=max(peaks, default=None))
        except Gemma4QuantError as error:
            if result.score is None and result.cache is None:
                raise
            result = replace(result, failure=str(error))
        return result

    def _caches(self, model: Model, cache: CacheOptions) -> CacheMatrix:
        assert self._texts is not None
        scoring = self._options.scoring
        windows = replace(self._texts.windows, n_ctx=cache.n_ctx, n_chunks=cache.n_chunks, stride=None)
        with LoadedModel(model.path, n_gpu_layers=scoring.n_gpu_layers, devices=scoring.devices) as loaded:
            text = make_text(loaded, replace(self._texts, windows=windows), self._progress)
            return measure_caches(loaded, text, cache, scoring.run, self._options.bootstrap, self._progress)

    @property
    def _n_threads(self) -> int:
        return self._options.scoring.run.n_threads or n_cores()

    def _whole(self, results: tuple[ModelResult, ...], scored: Scored | None, hashes: dict[Path, str]) -> BenchResult:
        reference, outcomes = self._reference, () if scored is None else scored.outcomes
        text = outcomes[0].text if outcomes else None
        error = None if scored is None else scored.storage_error
        return BenchResult(
            models=results,
            reference=None if reference is None else reference.used(hashes, error, self._forced),
            texts=() if text is None else text.domains,
            conditions=self._conditions(None if text is None else text.framing),
        )

    def _conditions(self, framing: str | None) -> Conditions:
        options = self._options
        scoring, run, windows = options.scoring, options.scoring.run, options.windows
        return Conditions(
            framing=framing,
            n_ctx=windows.n_ctx,
            stride=windows.stride,
            key_type=run.key_type.name.lower(),
            value_type=run.value_type.name.lower(),
            confidence=options.bootstrap.confidence,
            resamples=options.bootstrap.resamples,
            seed=options.bootstrap.seed,
            device=device_text(scoring.n_gpu_layers, scoring.devices),
            n_threads=self._n_threads,
            n_gpu_layers=scoring.n_gpu_layers,
            flash_attention=run.flash_attention,
            versions={"gemma4-quant": __version__, **versions()},
            started=self._started.isoformat(timespec="seconds").replace("+00:00", "Z"),
            elapsed_s=time.monotonic() - self._time,
            command=options.command,
        )
