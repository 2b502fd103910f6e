"""Text that a model writes to be calibrated with: answers to prompts through its template, and free text from BOS.

The text has the model's own distribution, which is what users meet, and needs no data. It is kept as a file of chats
that can be read, and used again like any other.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Self

from gemma4_quant import __version__
from gemma4_quant.calibration.beginnings import Beginning, Beginnings
from gemma4_quant.calibration.prompts import Prompt
from gemma4_quant.calibration.prompts import prompts as built_in_prompts
from gemma4_quant.calibration.repetition import without_loop
from gemma4_quant.calibration.self_text_file import Line, SelfTextFile, Written
from gemma4_quant.errors import InputError, RunError
from gemma4_quant.progress import Progress, SilentProgress
from gemma4_quant.runner.generation import N_SEQUENCES, generate
from gemma4_quant.runner.sampling import SamplingOptions
from gemma4_quant.runner.vocabulary import Vocabulary
from gemma4_quant.runner.weights import LoadedModel, Tokens
from gemma4_quant.texts.documents import Document, parse_line, read_documents
from gemma4_quant.writing.destination import check_destination

logger = logging.getLogger(__name__)

N_POSITIONS = 16384
"""Positions of the KV caches of all texts that are written at a time, where one text alone does not need more."""

LEAST_SAID = 16
"""Tokens; a shorter answer says too little to be kept."""

_N_TRIED = 16
"""Prompts after which it is judged whether the model answers at all."""

_MOST_FRUITLESS = 48
"""Texts one after another that cannot be kept, before a run is given up."""


@dataclass(frozen=True)
class SelfTextOptions:
    """How a model writes its own text.

    n_tokens: least number of tokens in all, with prompts. free_share: part of the texts that begin with BOS alone, so
    that the model chooses what comes. sampling: how tokens are drawn; its n_tokens bounds one answer, and its seed
    decides about all. n_sequences: texts written side by side. n_threads: None for all cores.
    """

    n_tokens: int
    free_share: float = 0.25
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    n_sequences: int = N_SEQUENCES
    n_threads: int | None = None

    def check(self) -> None:
        """Raise InputError for values that mean nothing."""
        self.sampling.check()
        if self.n_tokens < 1:
            raise InputError(f"{self.n_tokens} tokens of the model's own text are asked for; use at least 1")
        if not 0 <= self.free_share <= 1:
            raise InputError(f"the share of free text is {self.free_share}; use 0 to 1")
        if not 1 <= self.n_sequences <= N_SEQUENCES:
            raise InputError(f"{self.n_sequences} texts are to be written side by side; use 1 to {N_SEQUENCES}")


def write_self_text(
    output: Path,
    model: LoadedModel,
    options: SelfTextOptions,
    *,
    prompts: Sequence[Prompt] | None = None,
    progress: Progress | None = None,
) -> tuple[Document, ...]:
    """Let a model write its own text into a file of chats, and return the documents in it.

    A file that the same model has written with the same options and prompts is read instead; a run that was
    interrupted goes on. prompts: the built-in ones by default. Raises as `self_documents`, and OutputError when the
    file cannot be written.
    """
    check_destination(output, [model.path])
    with _Author(model, options, prompts) as author:
        file = SelfTextFile(output, author.digest())
        if not file.is_complete():
            author.written = file.take_up()
            for lines in author.write(progress or SilentProgress()):
                file.add(lines, author.written)
            file.finish()
    return read_documents(output)


def self_documents(
    model: LoadedModel,
    options: SelfTextOptions,
    *,
    prompts: Sequence[Prompt] | None = None,
    progress: Progress | None = None,
) -> tuple[Document, ...]:
    """Let a model write its own text and return it, without keeping a file.

    The same seed and thread count give the same text. Documents are named after their prompts. Raises InputError for
    options that mean nothing, RunError when the model fails or writes nothing that can be kept, NonFiniteError when
    its logits are not finite.
    """
    with _Author(model, options, prompts) as author:
        lines = [line for part in author.write(progress or SilentProgress()) for line in part]
    return tuple(Document(str(line["name"]), parse_line(json.dumps(line).encode())) for line in lines)


class _Author:
    """A model writing text after text; a context manager. written: how far it has come."""

    def __init__(self, model: LoadedModel, options: SelfTextOptions, prompts: Sequence[Prompt] | None) -> None:
        options.check()
        self.written = Written()
        self._model = model
        self._options = options
        self._prompts = built_in_prompts() if prompts is None else tuple(prompts)
        self._beginnings = Beginnings(model, self._prompts, options.free_share)
        self._vocabulary = Vocabulary(model)
        self._n_fruitless = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._beginnings.close()

    def digest(self) -> str:
        """Return what changes with model, options and prompts; the thread count is left out."""
        state = hashlib.sha256(f"{__version__} {replace(self._options, n_threads=None)}\n".encode())
        state.update(repr(self._prompts).encode())
        for tensor in self._model.file.tensors:
            state.update(f"{tensor.name} {tensor.shape} {tensor.type.name} ".encode() + tensor.source.identity)
        return state.hexdigest()[:16]

    def write(self, progress: Progress) -> Iterator[list[Line]]:
        """Yield lines of the file, a few texts at a time, until there are tokens enough."""
        progress.start("write", self._options.n_tokens, "token")
        progress.advance(self.written.n_tokens)
        try:
            while self.written.n_tokens < self._options.n_tokens:
                yield self._write_some(progress)
        finally:
            progress.finish()

    def _write_some(self, progress: Progress) -> list[Line]:
        begun = self._begin_some()
        answers = generate(
            self._model,
            [beginning.opening for beginning in begun],
            self._options.sampling,
            n_ctx=self._n_ctx(begun),
            n_sequences=self._options.n_sequences,
            n_threads=self._options.n_threads,
            said=progress.advance,
        )
        kept = [
            (beginning, said)
            for beginning, answer in zip(begun, answers, strict=True)
            if len(said := without_loop(answer)) >= LEAST_SAID
        ]
        self._count(begun, kept)
        progress.advance(sum(len(beginning.opening.tokens) for beginning, _ in kept))
        return [beginning.line(self._vocabulary.text(said)) for beginning, said in kept]

    def _begin_some(self) -> list[Beginning]:
        """Return beginnings of as many texts as are needed, and can be written side by side."""
        written, options = self.written, self._options
        mean = max(LEAST_SAID, written.n_tokens / written.n_begun if written.n_begun else options.sampling.n_tokens)
        n_needed = ceil((options.n_tokens - written.n_tokens) / mean)
        only_raw = _answers_too_little(written.n_asked, written.n_answered)
        begun: list[Beginning] = []
        number = written.n_begun
        while len(begun) < min(n_needed, options.n_sequences):
            beginning = self._beginnings.make(number, only_raw=only_raw)
            if begun and (len(begun) + 1) * self._n_ctx([*begun, beginning]) > N_POSITIONS:
                break
            begun.append(beginning)
            number += 1
        return begun

    def _n_ctx(self, begun: Sequence[Beginning]) -> int:
        longest = max(len(beginning.opening.tokens) for beginning in begun)
        return min(self._model.n_ctx_train, longest + self._options.sampling.n_tokens)

    def _count(self, begun: Sequence[Beginning], kept: Sequence[tuple[Beginning, Tokens]]) -> None:
        before = self.written
        n_kept = sum(len(beginning.opening.tokens) + len(said) for beginning, said in kept)
        n_asked = before.n_asked + sum(beginning.is_answer for beginning in begun)
        n_answered = before.n_answered + sum(beginning.is_answer for beginning, _ in kept)
        self._n_fruitless = 0 if kept else self._n_fruitless + len(begun)
        if self._n_fruitless >= _MOST_FRUITLESS:
            raise RunError(
                f"{self._model.path} writes nothing that can be kept: {self._n_fruitless} texts were empty or repeat "
                "themselves; calibrate with a text instead (-f), and see whether the model is damaged"
            )
        if _answers_too_little(n_asked, n_answered) and not _answers_too_little(before.n_asked, before.n_answered):
            logger.warning(
                "%s answered only %d of %d prompts; it goes on from their words, without its chat template",
                self._model.path,
                n_answered,
                n_asked,
            )
        self.written = Written(before.n_begun + len(begun), before.n_tokens + n_kept, n_asked, n_answered)


def _answers_too_little(n_asked: int, n_answered: int) -> bool:
    return n_asked >= _N_TRIED and 2 * n_answered < n_asked
