"""What quantized KV caches lose and save: one model under each pair of types of keys and values, side by side."""

from contextlib import ExitStack
from dataclasses import dataclass, replace

from gemma4_quant.errors import InputError, RunError
from gemma4_quant.ggml import GgmlType
from gemma4_quant.measuring.bootstrap import BootstrapOptions
from gemma4_quant.measuring.capacity import cache_bytes
from gemma4_quant.measuring.decoding import RunOptions, session_options
from gemma4_quant.measuring.evaluation import Candidate, evaluate
from gemma4_quant.measuring.references import ModelReference
from gemma4_quant.measuring.results import CacheCell, CacheMatrix
from gemma4_quant.measuring.score_store import ScoreStore
from gemma4_quant.measuring.scored_text import ScoredText
from gemma4_quant.measuring.statistics import Sample
from gemma4_quant.measuring.summaries import bootstrap_units, text_score
from gemma4_quant.progress import Progress
from gemma4_quant.runner.session import Session
from gemma4_quant.runner.weights import LoadedModel


@dataclass(frozen=True)
class CacheOptions:
    """Which caches to try. types: of keys and values, in all pairs; what diverges is measured from the first pair.

    n_ctx: tokens of a window. n_chunks: at most so many windows of each domain.
    """

    types: tuple[GgmlType, ...]
    n_ctx: int = 4096
    n_chunks: int = 4

    def check(self) -> None:
        """Raise InputError without types."""
        if not self.types:
            raise InputError("no type of KV cache is given; name some, such as --kv f16,q8_0,q4_0")


def measure_caches(
    model: LoadedModel,
    text: ScoredText,
    options: CacheOptions,
    run: RunOptions,
    bootstrap: BootstrapOptions,
    progress: Progress,
) -> CacheMatrix:
    """Run a model under all pairs of cache types, two sessions at a time.

    Raises InputError without types, RunError when llama.cpp does not run a pair.
    """
    options.check()
    pairs = [(key, value) for key in options.types for value in options.types]
    cells = [_cell(model, text, pairs[0], pair, run, bootstrap, progress) for pair in pairs]
    longest = max(len(passage.window.tokens) for passage in text.passages)
    return CacheMatrix(longest, len(text.passages), tuple(cells))


def _cell(
    model: LoadedModel,
    text: ScoredText,
    first: tuple[GgmlType, GgmlType],
    pair: tuple[GgmlType, GgmlType],
    run: RunOptions,
    bootstrap: BootstrapOptions,
    progress: Progress,
) -> CacheCell:
    windows = [passage.window for passage in text.passages]
    sizes = session_options(windows, model.n_vocab, 2, run)
    with ExitStack() as stack:
        base, other = (
            stack.enter_context(Session(model, replace(sizes, key_type=key, value_type=value)))
            for key, value in (first, pair)
        )
        store = stack.enter_context(ScoreStore(1, text.n_positions))
        failures = evaluate([Candidate(other, 0)], text, ModelReference(base), store, sizes, progress)
        scores = store.scores(0)
    if scores is None:
        raise RunError(f"a KV cache of {pair[0].name} keys and {pair[1].name} values fails: {failures.get(0)}")
    units, strata = bootstrap_units(text)
    n_documents = sum(used.n_documents for used in text.domains)
    return CacheCell(
        key_type=pair[0].name.lower(),
        value_type=pair[1].name.lower(),
        cache_bytes=cache_bytes(model.file.metadata, sizes.n_ctx, 1, *pair),
        score=text_score(Sample(scores, units, strata), bootstrap, n_documents, len(text.passages)),
    )
