"""Texts as what models read and are scored on: windows of tokens in domains.

A raw text is cut as llama-perplexity cuts it, so that its numbers can be compared with. Framed text, and raw text of
several documents, is cut so that each word (of a chat, of the model's own) is scored once.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gemma4_quant.errors import InputError, TextError
from gemma4_quant.measuring.results import TextUsed
from gemma4_quant.runner.weights import LoadedModel, Tokens
from gemma4_quant.text import cut_chunks
from gemma4_quant.texts.documents import Document
from gemma4_quant.texts.framing import Framer, Framing
from gemma4_quant.texts.packing import Window, windows

MAX_DOMAINS = 1000

_CONTEXT_STEP = 256  # llama-context.cpp


@dataclass(frozen=True)
class Domain:
    """Texts of one kind, scored together. source: where they come from, such as a path or `built in`."""

    name: str
    source: str
    documents: tuple[Document, ...]


@dataclass(frozen=True)
class WindowOptions:
    """How texts are cut.

    n_ctx: most tokens of a window. n_chunks: at most so many windows of each domain, None for all. stride: raw text
    only, tokens between the starts of windows that overlap, of which the last `stride` are scored (as by
    llama-perplexity -c N -b N --ppl-stride, whose windows are longer than N); None for windows side by side.
    """

    n_ctx: int = 512
    n_chunks: int | None = None
    stride: int | None = None

    def check(self) -> None:
        """Raise InputError for values that score nothing."""
        if self.n_ctx < 2:
            raise InputError(f"a context of {self.n_ctx} tokens predicts nothing; use at least 2")
        if self.n_chunks is not None and self.n_chunks < 1:
            raise InputError(f"{self.n_chunks} chunks are asked for; use at least 1")
        if self.stride is not None and not 0 < self.stride < self.n_ctx:
            raise InputError(f"a stride of {self.stride} does not fit a context of {self.n_ctx}; use 1 to n_ctx - 1")


@dataclass(frozen=True)
class Passage:
    """A window with the numbers of its domain, and of its document among all documents."""

    domain: int
    document: int
    window: Window


@dataclass(frozen=True)
class ScoredText:
    """All that is scored, in order.

    framing: what the passages are; `tokens` when only those are known. n_batch: most tokens to decode at a time,
    where llama.cpp's tool has another limit than usual: batches of other sizes round otherwise.
    """

    framing: str
    n_ctx: int
    domains: tuple[TextUsed, ...]
    passages: tuple[Passage, ...]
    n_batch: int | None = None

    @property
    def n_positions(self) -> int:
        """How many predictions are scored."""
        return int(self.counts.sum())

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many predictions of each passage are scored, (n_passages,) int64."""
        return np.array([passage.window.n_scored for passage in self.passages], np.int64)

    @cached_property
    def positions(self) -> npt.NDArray[np.int32]:
        """Place of each scored token in its window, (n_positions,) int32."""
        places = [np.flatnonzero(passage.window.is_scored) for passage in self.passages]
        return np.concatenate(places).astype(np.int32)

    @cached_property
    def passage_of(self) -> npt.NDArray[np.int64]:
        """Number of the passage of each scored token, (n_positions,) int64."""
        return np.repeat(np.arange(len(self.passages)), self.counts)

    @cached_property
    def domain_of(self) -> npt.NDArray[np.int64]:
        """Number of the domain of each passage, (n_passages,) int64."""
        return np.array([passage.domain for passage in self.passages], np.int64)

    def digest(self) -> str:
        """Return SHA-256, in hexadecimal, of all tokens and of which are scored."""
        return tokens_digest(self.passages)


def scored_text(
    model: LoadedModel, domains: Sequence[Domain], framing: Framing, options: WindowOptions
) -> ScoredText:
    """Tokenise, frame and cut texts.

    Raises TextError for a domain with nothing to score, ChatTemplateError when a template refuses a chat.
    """
    options.check()
    if not domains or len(domains) > MAX_DOMAINS:
        raise InputError(f"{len(domains)} domains of text are given; give 1 to {MAX_DOMAINS}")
    _refuse_same_names(domains)
    if options.stride is not None and framing is not Framing.RAW:
        raise InputError("overlapping windows (--ppl-stride) are for raw text; add --raw")
    if options.stride is not None and any(len(domain.documents) > 1 for domain in domains):
        raise InputError("overlapping windows (--ppl-stride) are for texts of one document each")
    passages: list[Passage] = []
    used: list[TextUsed] = []
    n_documents = 0
    for number, domain in enumerate(domains):
        cut = _cut(model, domain, framing, options)[: options.n_chunks]
        own = tuple(Passage(number, n_documents + window.document, window) for window in cut)
        if not own:
            raise TextError(f"the text of {domain.name} ({domain.source}) has no token to score; give a longer text")
        passages += own
        used.append(_used(domain, own))
        n_documents += len(domain.documents)
    n_batch = None if options.stride is None else options.n_ctx
    return ScoredText(framing.value, options.n_ctx, tuple(used), tuple(passages), n_batch)


def _refuse_same_names(domains: Sequence[Domain]) -> None:
    names: dict[str, list[str]] = {}
    for domain in domains:
        names.setdefault(domain.name, []).append(domain.source)
    for name, sources in names.items():
        if len(sources) > 1:
            raise InputError(f"{' and '.join(sources)} are both called {name!r}; name them: -f NAME=PATH")


def _cut(model: LoadedModel, domain: Domain, framing: Framing, options: WindowOptions) -> list[Window]:
    """Return windows; their documents count within the domain."""
    found: list[Window] = []
    with Framer(model, framing, n_ctx=options.n_ctx) as framer:
        for number, document in enumerate(domain.documents):
            framed = framer.frame(document)
            if framing is Framing.RAW and len(domain.documents) == 1:
                found += _raw_windows(model, framed[0].tokens, options, domain.source)
            else:
                found += [Window(number, w.tokens, w.is_scored) for w in windows(model, framed, options.n_ctx)]
            if options.n_chunks is not None and len(found) >= options.n_chunks:
                break
    return found


def _raw_windows(model: LoadedModel, tokens: Tokens, options: WindowOptions, source: str) -> list[Window]:
    """Cut a raw text as llama-perplexity does; source: names it. Raises TextError unless it fills two contexts."""
    if options.stride is not None:
        return _strided_windows(tokens, options.n_ctx, options.stride, source)
    chunks = cut_chunks(model, tokens, options.n_ctx, options.n_chunks, source=source, least=2)
    return [second_half(chunk) for chunk in chunks.tokens]


def second_half(tokens: Tokens) -> Window:
    """Score what follows the positions from the middle on, so that each token has at least half a context."""
    is_scored = np.zeros(len(tokens), np.bool_)
    is_scored[len(tokens) // 2 + 1 :] = True
    return Window(0, tokens, is_scored)


def _strided_windows(tokens: Tokens, n_ctx: int, stride: int, source: str) -> list[Window]:
    """Cut overlapping windows, which do not begin with BOS.

    They are longer than the context: llama-perplexity adds half a stride to it, and llama.cpp rounds up
    (perplexity.cpp, main and perplexity_v2).
    """
    length = -(-(n_ctx + stride // 2) // _CONTEXT_STEP) * _CONTEXT_STEP
    if len(tokens) < 2 * length:
        raise TextError(
            f"{source} has {len(tokens)} tokens, but a context of {n_ctx} with a stride of {stride} needs at least "
            f"{2 * length}; give a longer text or a shorter context (-c)"
        )
    is_scored = np.zeros(length, np.bool_)
    is_scored[length - stride :] = True
    starts = range(0, len(tokens) - length, stride)
    return [Window(0, tokens[start : start + length], is_scored) for start in starts]


def _used(domain: Domain, passages: Sequence[Passage]) -> TextUsed:
    return TextUsed(
        domain=domain.name,
        source=domain.source,
        sha256=tokens_digest(passages),
        n_documents=len({passage.document for passage in passages}),
        n_tokens=sum(len(passage.window.tokens) for passage in passages),
        n_chunks=len(passages),
        n_positions=sum(passage.window.n_scored for passage in passages),
    )


def tokens_digest(passages: Sequence[Passage]) -> str:
    """Return SHA-256, in hexadecimal, of the tokens of passages and of which are scored."""
    state = hashlib.sha256()
    for passage in passages:
        state.update(len(passage.window.tokens).to_bytes(8, "little"))
        state.update(passage.window.tokens.astype("<i4").tobytes())
        state.update(np.packbits(passage.window.is_scored).tobytes())
    return state.hexdigest()
