"""From the scores of all positions to what a report shows of a model: overall, by domain, by position."""

import numpy as np
import numpy.typing as npt

from gemma4_quant.measuring.bootstrap import MIN_UNITS, BootstrapOptions
from gemma4_quant.measuring.position_scores import PositionScores
from gemma4_quant.measuring.results import (
    MAX_TOKEN_PAIRS,
    DomainScore,
    PositionBin,
    Score,
    TextScore,
    TokenPair,
)
from gemma4_quant.measuring.scored_text import ScoredText
from gemma4_quant.measuring.statistics import Sample, Summary

_MAX_BINS = 8
_LEAST_IN_BIN = 16


def score_of(scores: PositionScores, text: ScoredText, options: BootstrapOptions, *, n_threads: int = 1) -> Score:
    """Summarise a model's scores at all scored positions of a text."""
    units, strata = bootstrap_units(text)
    whole = Sample(scores, units, strata)
    domains = tuple(
        DomainScore(
            used.domain,
            text_score(
                _part(whole, text.domain_of[text.passage_of] == number), options, used.n_documents, used.n_chunks
            ),
        )
        for number, used in enumerate(text.domains)
    )
    n_documents = sum(used.n_documents for used in text.domains)
    overall = text_score(whole, options, n_documents, len(text.passages), n_threads=n_threads)
    return Score(overall, domains, _by_position(whole, text.positions, options), _token_pairs(scores, options.seed))


def text_score(
    sample: Sample, options: BootstrapOptions, n_documents: int, n_chunks: int, *, n_threads: int = 1
) -> TextScore:
    """Summarise a sample of positions."""
    summary = Summary(sample, options, n_threads=n_threads)
    return TextScore(n_documents, n_chunks, len(sample.scores.nll), summary.perplexity(), summary.divergence())


def bootstrap_units(text: ScoredText) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the unit of each position, and the domain of each unit: documents, or windows where those are few."""
    passages = text.passages
    owners = []
    for passage_number, passage in enumerate(passages):
        is_many = text.domains[passage.domain].n_documents >= MIN_UNITS
        owners.append((passage.domain, passage.document if is_many else -1 - passage_number))
    distinct = list(dict.fromkeys(owners))
    numbers = {owner: number for number, owner in enumerate(distinct)}
    of_passage = np.array([numbers[owner] for owner in owners], np.int64)
    strata = np.array([domain for domain, _ in distinct], np.int64)
    return of_passage[text.passage_of], strata


def _part(sample: Sample, chosen: npt.NDArray[np.bool_]) -> Sample:
    """Return chosen positions, with the units they belong to numbered anew."""
    scores = sample.scores
    kept, units = np.unique(sample.units[chosen], return_inverse=True)
    has_reference = scores.divergence is not None
    return Sample(
        PositionScores(
            scores.nll[chosen],
            scores.reference_nll[chosen] if has_reference and scores.reference_nll is not None else None,
            scores.divergence[chosen] if scores.divergence is not None else None,
            scores.same_top[chosen] if has_reference and scores.same_top is not None else None,
        ),
        units.astype(np.int64),
        sample.strata[kept],
    )


def _by_position(
    sample: Sample, positions: npt.NDArray[np.int32], options: BootstrapOptions
) -> tuple[PositionBin, ...]:
    """Cut positions into bins of one width."""
    first, last = int(positions.min()), int(positions.max())
    width = -(-(last - first + 1) // min(_MAX_BINS, last - first + 1))
    bins = []
    for start in range(first, last + 1, width):
        stop = min(start + width, last + 1)
        part = _part(sample, (positions >= start) & (positions < stop))
        if len(part.scores.nll) < _LEAST_IN_BIN:
            continue
        summary = Summary(part, options)
        n = len(part.scores.nll)
        bins.append(
            PositionBin(start, stop - 1, n, summary.perplexity(), summary.mean_divergence(), summary.same_top())
        )
    return tuple(bins)


def _token_pairs(scores: PositionScores, seed: int) -> tuple[TokenPair, ...]:
    if scores.reference_nll is None:
        return ()
    n = len(scores.nll)
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:MAX_TOKEN_PAIRS])
    reference, model = np.exp(-scores.reference_nll[chosen]), np.exp(-scores.nll[chosen])
    return tuple(TokenPair(*pair) for pair in zip(reference.tolist(), model.tolist(), strict=True))
