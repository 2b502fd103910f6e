"""All that a bench finds out, as plain data: what a report shows, and what is stored to compare with later.

Shares and probabilities are 0 to 1, divergences are in nats, sizes in bytes, times in seconds. Nothing here computes.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gemma4_quant.measuring.speed import ModelSpeeds


@dataclass(frozen=True)
class Estimate:
    """A number found from a sample.

    error: standard error, None where there is no sound one (extremes). low, high: bounds of the confidence interval
    by bootstrap over documents, at Conditions.confidence; None when there were too few documents for one.
    """

    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Distribution:
    """Values over all scored positions: mean, extremes, and those percentiles that llama-perplexity prints."""

    mean: Estimate
    minimum: Estimate
    percentile_0_1: Estimate
    percentile_1: Estimate
    percentile_5: Estimate
    percentile_10: Estimate
    percentile_25: Estimate
    median: Estimate
    percentile_75: Estimate
    percentile_90: Estimate
    percentile_95: Estimate
    percentile_99: Estimate
    percentile_99_9: Estimate
    maximum: Estimate


@dataclass(frozen=True)
class Divergence:
    """How a model's predictions differ from its reference's, over the same positions.

    kl: Kullback-Leibler divergence KL(reference ‖ model) in nats. delta_p: change of the true token's probability.
    delta_p_rms: its root mean square. same_top: share of positions where both find the same token likeliest.
    reference_perplexity: the reference's. log_perplexity_ratio: ln(perplexity / reference's); perplexity_ratio,
    perplexity_difference: the same otherwise. nll_correlation: of both models' negative log-likelihoods, None where
    one of them does not vary.
    """

    kl: Distribution
    delta_p: Distribution
    delta_p_rms: Estimate
    same_top: Estimate
    reference_perplexity: Estimate
    log_perplexity_ratio: Estimate
    perplexity_ratio: Estimate
    perplexity_difference: Estimate
    nll_correlation: float | None


@dataclass(frozen=True)
class TextScore:
    """What a model scored on the documents of one domain, or on all. divergence: None without a reference."""

    n_documents: int
    n_chunks: int
    n_positions: int
    perplexity: Estimate
    divergence: Divergence | None


@dataclass(frozen=True)
class DomainScore:
    """What a model scored on one domain."""

    domain: str
    score: TextScore


@dataclass(frozen=True)
class PositionBin:
    """Scores at positions first to last (inclusive) of a chunk. kl, same_top: None without a reference."""

    first: int
    last: int
    n_positions: int
    perplexity: Estimate
    kl: Estimate | None
    same_top: Estimate | None


@dataclass(frozen=True)
class TokenPair:
    """Probability that the reference and the model gave the true token at one position."""

    reference: float
    model: float


MAX_TOKEN_PAIRS = 1000
"""Most positions of a sample for the plot of token probabilities."""


@dataclass(frozen=True)
class Score:
    """What a model scored.

    overall: over all domains, a position counting the same wherever it stands. by_position: bins in order.
    sample: at most MAX_TOKEN_PAIRS positions drawn evenly (seeded); empty without a reference.
    """

    overall: TextScore
    domains: tuple[DomainScore, ...]
    by_position: tuple[PositionBin, ...]
    sample: tuple[TokenPair, ...]


@dataclass(frozen=True)
class CacheCell:
    """A model run with one pair of types of the KV cache.

    key_type, value_type: names such as `q8_0`. cache_bytes: memory of keys and values of one sequence of n_ctx
    tokens. score: divergence is that from the same model with the matrix's first pair.
    """

    key_type: str
    value_type: str
    cache_bytes: int
    score: TextScore


@dataclass(frozen=True)
class CacheMatrix:
    """What each pair of types of the KV cache costs and loses; the first cell is what the others diverge from."""

    n_ctx: int
    n_chunks: int
    cells: tuple[CacheCell, ...]


@dataclass(frozen=True)
class FileFact:
    """A file: its name without folders, its size, and SHA-256 of its content in hexadecimal."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class TypeShare:
    """How much of a model is stored in one type. type: GGUF's name, such as `Q4_K`."""

    type: str
    n_tensors: int
    n_weights: int
    n_bytes: int


@dataclass(frozen=True)
class ModelFile:
    """A GGUF file, or all shards of a split one.

    path: as given. name: general.name, or the file's. n_bytes: of all files. bits_per_weight: of the tensors alone.
    architecture: general.architecture. file_type: name such as `Q4_K_M`, None when the file does not say. types: most
    weights first. is_qat: whether its weights were trained for a 4-bit grid, as far as names and metadata tell.
    """

    path: Path
    name: str
    files: tuple[FileFact, ...]
    n_bytes: int
    n_weights: int
    bits_per_weight: float
    architecture: str
    file_type: str | None
    types: tuple[TypeShare, ...]
    is_qat: bool


@dataclass(frozen=True)
class ModelResult:
    """Measurements of one model.

    is_reference: whether the others are compared with this file. score: None when nothing was scored. cache: None
    unless asked for. speeds: None when not measured. peak_bytes: most memory while it was measured, None where that
    is not known. failure: why it could not be measured completely; what is there was computed before.
    """

    file: ModelFile
    is_reference: bool
    score: Score | None
    cache: CacheMatrix | None
    speeds: ModelSpeeds | None
    peak_bytes: int | None
    failure: str | None


class ReferenceKind(StrEnum):
    """Where the reference's predictions come from."""

    MODEL = "model"
    COMPACT = "compact file"
    LLAMA = "llama.cpp logits file"


@dataclass(frozen=True)
class ReferenceUsed:
    """What the models were compared with.

    path: a GGUF file, or a file of stored predictions. model: what is known of the model that made them; None for
    files of llama.cpp, which do not say. stored_bytes: size of stored predictions, None for a model. storage_error:
    standard error, in nats, that storing them adds to the mean divergence; None where nothing was left out.
    forced: mismatches that were reported and overridden.
    """

    path: Path
    kind: ReferenceKind
    model: ModelFile | None
    stored_bytes: int | None
    storage_error: float | None
    forced: tuple[str, ...]


@dataclass(frozen=True)
class TextUsed:
    """A domain's text. source: a path, `built in`, or `self` for the reference's own answers.

    sha256: of the tokens scored and of which of them count, so that two runs can tell whether they scored the same.
    """

    domain: str
    source: str
    sha256: str
    n_documents: int
    n_tokens: int
    n_chunks: int
    n_positions: int


@dataclass(frozen=True)
class Conditions:
    """Under what everything was measured.

    framing: `turn`, `raw`, or `tokens` when they came from a file of stored predictions; None when nothing was
    scored. stride: tokens between the starts of chunks when they overlap, None when they do not. key_type,
    value_type: of the KV cache. confidence: of intervals, such as 0.95; resamples: of the bootstrap. device: what ran
    the models. n_gpu_layers, flash_attention: None where llama.cpp chose. started: RFC 3339, UTC. command: what
    repeats the run, as arguments.
    """

    framing: str | None
    n_ctx: int
    stride: int | None
    key_type: str
    value_type: str
    confidence: float
    resamples: int
    seed: int
    device: str
    n_threads: int
    n_gpu_layers: int | None
    flash_attention: bool | None
    versions: dict[str, str]
    started: str
    elapsed_s: float
    command: tuple[str, ...]


@dataclass(frozen=True)
class BenchResult:
    """Measurements of several models under the same conditions. warnings: what limits what the numbers mean."""

    models: tuple[ModelResult, ...]
    reference: ReferenceUsed | None
    texts: tuple[TextUsed, ...]
    conditions: Conditions
    warnings: tuple[str, ...] = ()
