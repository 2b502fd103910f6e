"""Cutting framed documents into pieces of a context: chunks for calibration, windows for measurement."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from gemma4_quant.errors import InputError
from gemma4_quant.runner.weights import LoadedModel, Tokens
from gemma4_quant.text import Chunks, cut_chunks
from gemma4_quant.texts.framing import FramedDocument, Framing


def pack(
    model: LoadedModel,
    documents: Sequence[FramedDocument],
    framing: Framing,
    n_ctx: int,
    n_chunks: int | None = None,
    *,
    source: str,
) -> Chunks:
    """Cut documents, one after another, into chunks of `n_ctx` tokens for calibration.

    A raw text gives the chunks that llama-imatrix makes of it. n_chunks: at most so many; None for all. source: names
    the documents in messages. Raises TextError when they have fewer tokens than one chunk; raw ones must fill two,
    as llama.cpp's tools ask for.
    """
    parts = [document.tokens for document in documents] or [np.empty(0, np.int32)]
    least = 2 if framing is Framing.RAW else 1
    return cut_chunks(model, np.concatenate(parts), n_ctx, n_chunks, source=source, least=least)


def mix(parts: Sequence[npt.NDArray[np.int32]], weights: Sequence[float]) -> npt.NDArray[np.int32]:
    """Mix chunks of several sources, each as often as its weight says, evenly spread.

    parts: (n_chunks, n_ctx) int32 each. weights: how often each chunk of a source is taken: 2 takes all twice, 0.5
    every second one. Returns (n, n_ctx) int32; the first chunks of it hold all sources in about the proportion of the
    whole. Raises InputError when a weight is not a finite number above zero.
    """
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise InputError(f"a weight of {weight} is asked for; use a number above zero")
    places: list[tuple[float, int, int]] = []
    for number, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        taken = [index for index in range(len(part)) for _ in range(_times(index, weight))]
        places += [((place + 0.5) / len(taken), number, index) for place, index in enumerate(taken)]
    places.sort(key=lambda place: place[:2])
    return np.stack([parts[number][index] for _, number, index in places])


def _times(index: int, weight: float) -> int:
    """Return how often chunk `index` is taken, so that the first n are taken n·weight times, rounded up."""
    return ceil((index + 1) * weight) - ceil(index * weight)


@dataclass(frozen=True)
class Window:
    """A piece of a document that a model reads at once.

    document: index of the document. tokens: (n,) int32, n at most the context. is_scored: (n,) bool, the tokens whose
    prediction from those before them counts; never the first.
    """

    document: int
    tokens: Tokens
    is_scored: npt.NDArray[np.bool_]

    @property
    def n_scored(self) -> int:
        """How many predictions count."""
        return int(self.is_scored.sum())


def windows(model: LoadedModel, documents: Sequence[FramedDocument], n_ctx: int) -> tuple[Window, ...]:
    """Cut documents into windows, so that each of the model's own words is scored once.

    A document of at most `n_ctx` tokens is one window. In a longer one windows overlap by half, so that all but the
    first words have at least half a context before them; later windows begin with BOS where the model wants it.
    Windows end with their last scored token, and those without one are left out.
    """
    if n_ctx < 2:
        raise InputError(f"a context of {n_ctx} tokens predicts nothing; use at least 2")
    return tuple(
        window
        for number, document in enumerate(documents)
        for window in _windows_of(model, number, document, n_ctx)
        if window.n_scored
    )


def _windows_of(model: LoadedModel, number: int, document: FramedDocument, n_ctx: int) -> Iterator[Window]:
    n_tokens = len(document.tokens)
    n_scored = 1  # the first token follows nothing
    while n_scored < n_tokens:
        start = 0 if n_scored == 1 else min(n_scored - n_ctx // 2, n_tokens - n_ctx)
        stop = min(start + n_ctx, n_tokens)
        tokens, is_scored = document.tokens[start:stop].copy(), document.is_answer[start:stop].copy()
        is_scored[: n_scored - start] = False
        if start and model.add_bos:
            tokens[0] = model.bos
        end = int(np.flatnonzero(is_scored)[-1]) + 1 if is_scored.any() else 0
        yield Window(number, tokens[:end], is_scored[:end])
        n_scored = stop
