"""Framing documents as the model meets them: as turns of its own template, with its own words marked.

An instruction-tuned model expects text inside turns: Gemma 4's says little outside its own turn, and little inside
it without the thought channel, empty or not, that its answers open with.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from gemma4_quant.chat.model_template import special_texts, template_text
from gemma4_quant.chat.templates import ChatTemplate
from gemma4_quant.errors import ChatTemplateError, TextError, naming
from gemma4_quant.runner.vocabulary import Vocabulary
from gemma4_quant.runner.weights import LoadedModel, Tokens
from gemma4_quant.texts.documents import Chat, Document, Transcript, is_encodable
from gemma4_quant.texts.turns import MarkedText, TurnRenderer, outside_headers, words_of

logger = logging.getLogger(__name__)


class Framing(StrEnum):
    """How a document is put to the model."""

    TURN = "turn"
    """Chats by the model's template; plain text as what the model itself says in its turn."""
    RAW = "raw"
    """Plain text as it is, after BOS, as llama.cpp's tools do; of a chat the words of its messages."""


@dataclass(frozen=True)
class FramedDocument:
    """A document as tokens.

    tokens: (n,) int32, what the model reads, from BOS where it wants one. is_answer: (n,) bool, the tokens that are
    the model's own words, never one of the template; all but BOS when the framing is raw.
    """

    name: str
    tokens: Tokens
    is_answer: npt.NDArray[np.bool_]


def has_template(model: LoadedModel) -> bool:
    """Tell whether a model has a chat template; base models have none."""
    with naming(model.path):
        return bool(template_text(model.file.metadata))


def chosen_framing(model: LoadedModel, wanted: Framing | None) -> Framing:
    """Return `wanted`, or else turns where the model has a template; without one raw, and a warning."""
    if wanted is not None:
        return wanted
    if has_template(model):
        return Framing.TURN
    logger.warning("%s has no chat template, so texts are read raw; that is right for a base model", model.path)
    return Framing.RAW


class Framer:
    """Frames documents for a model, one after another; a context manager, for the template runs in a process."""

    def __init__(
        self, model: LoadedModel, framing: Framing, *, n_ctx: int | None = None, parse_special: bool = False
    ) -> None:
        """Get ready.

        n_ctx: longest turn of plain text, frame included; a longer text becomes several turns. None for no limit.
        parse_special: read `<bos>` and the like in plain text as tokens; in chats and transcripts they are.
        """
        self._model = model
        self._framing = framing
        self._parse_special = parse_special
        self._n_ctx = n_ctx
        self._vocabulary = Vocabulary(model)
        self._template: ChatTemplate | None = None

    @cached_property
    def _turns(self) -> TurnRenderer:
        """The template, started when the first document needs it."""
        model, metadata = self._model, self._model.file.metadata
        source = template_text(metadata)
        if not source:
            raise ChatTemplateError(
                f"{model.path} has no chat template, so nothing can be framed as turns; frame texts raw "
                "(--raw), which is right for a base model"
            )
        try:
            self._template = ChatTemplate(source, **special_texts(metadata))
            return TurnRenderer(self._template, source)
        except ChatTemplateError as error:
            raise ChatTemplateError(f"{model.path}: {error}; frame texts raw (--raw)") from error

    def __enter__(self) -> Self:
        """Return the framer."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End the template's process."""
        self.close()

    def close(self) -> None:
        """End the template's process."""
        if self._template is not None:
            self._template.close()

    @property
    def has_ended(self) -> bool:
        """Tell whether the template's process was stopped, so that it renders nothing any more."""
        return self._template is not None and self._template.has_ended

    def frame(self, document: Document) -> tuple[FramedDocument, ...]:
        """Frame a document: one, or several turns of a plain text that is longer than n_ctx.

        Raises ChatTemplateError when a turn is asked for and the model has no template, one that fails, or one that
        refuses the chat, with its words; TextError for a document that has no UTF-8 form. Both name the document.
        """
        name, content = document.name, document.content
        if not is_encodable(_texts_of(content)):
            raise TextError(f"{name} holds half a surrogate pair, which is no text")
        if isinstance(content, Transcript):
            return (self._framed_transcript(name, content),)
        if self._framing is Framing.RAW:
            return (self._framed_raw(name, content if isinstance(content, str) else words_of(content)),)
        if isinstance(content, str):
            return self._framed_text(name, content)
        turns = self._turns
        try:
            marked = turns.render(content)
        except ChatTemplateError as error:
            raise ChatTemplateError(f"{name}: {error}") from error
        return (self._framed_marked(name, self._vocabulary.tokenise_marked(marked.text), marked),)

    def opening(self, chat: Chat) -> Tokens:
        """Return what the model reads when it is to answer a chat; raises ChatTemplateError as `frame` does."""
        return self._vocabulary.tokenise_marked(self._turns.opening(chat))

    def _framed_raw(self, name: str, text: str) -> FramedDocument:
        tokens = self._model.tokenise(text, parse_special=self._parse_special)
        is_answer = np.ones(len(tokens), np.bool_)
        if self._model.add_bos:
            is_answer[0] = False
        return FramedDocument(name, tokens, is_answer)

    def _framed_transcript(self, name: str, transcript: Transcript) -> FramedDocument:
        marked = MarkedText(transcript.text, outside_headers(transcript.text))
        said = self._framed_marked(name, self._vocabulary.tokenise_marked(transcript.text), marked)
        begin = self._model.tokenise("")
        is_answer = np.concatenate([np.zeros(len(begin), np.bool_), said.is_answer])
        return FramedDocument(name, np.concatenate([begin, said.tokens]), is_answer)

    def _framed_marked(self, name: str, tokens: Tokens, marked: MarkedText) -> FramedDocument:
        return FramedDocument(name, tokens, self._inside(marked, tokens) & ~self._vocabulary.are_markers(tokens))

    def _inside(self, marked: MarkedText, tokens: Tokens) -> npt.NDArray[np.bool_]:
        """Tell which tokens lie inside of a text's spans with all their letters."""
        # The vocabulary writes blanks as U+2581, so that sign in a text is spelled as a blank.
        letters = np.array([1 if letter == "\u2581" else len(letter.encode()) for letter in marked.text], np.int64)
        byte_of = np.concatenate([[0], np.cumsum(letters)])
        ends = np.cumsum(self._vocabulary.n_bytes(tokens))
        inside = np.zeros(len(tokens), np.bool_)
        if not len(tokens) or ends[-1] != byte_of[-1]:
            logger.warning("the model's tokens do not spell the text they were made of, so no words are marked in it")
            return inside
        starts = np.concatenate([[0], ends[:-1]])
        for start, stop in marked.spans:
            inside |= (starts >= byte_of[start]) & (ends <= byte_of[stop])
        return inside

    def _framed_text(self, name: str, text: str) -> tuple[FramedDocument, ...]:
        before, after = (
            self._vocabulary.tokenise_marked(self._turns.prompt),
            self._vocabulary.tokenise_marked(self._turns.closing),
        )
        words = self._words(text.strip("\n"))
        room = len(words) if self._n_ctx is None else self._n_ctx - len(before) - len(after)
        if room < 1:
            n_frame = len(before) + len(after)
            raise TextError(f"a turn's frame takes {n_frame} tokens, which leaves no room in {self._n_ctx} (-c)")
        pieces = self._pieces(words, room)
        return tuple(
            self._framed_piece(name if len(pieces) == 1 else f"{name}#{i}", before, piece, after)
            for i, piece in enumerate(pieces, 1)
        )

    def _words(self, text: str) -> Tokens:
        if self._parse_special:
            return self._vocabulary.tokenise_marked(text)
        return self._model.tokenise(text, add_special=False)

    def _framed_piece(self, name: str, before: Tokens, words: Tokens, after: Tokens) -> FramedDocument:
        is_answer = np.zeros(len(before) + len(words) + len(after), np.bool_)
        is_answer[len(before) : len(before) + len(words)] = ~self._vocabulary.are_markers(words)
        return FramedDocument(name, np.concatenate([before, words, after]), is_answer)

    def _pieces(self, words: Tokens, room: int) -> list[Tokens]:
        """Cut a text into pieces of at most `room` tokens: between lines if possible, else between words."""
        spellings = [self._vocabulary.spelling(token) for token in words.tolist()]
        pieces, start = [], 0
        while len(words) - start > room:
            least = start + room // 2
            ends_line = (i for i in range(start + room, least, -1) if not spellings[i].strip(b"\n"))
            begins_word = (i for i in range(start + room, least, -1) if spellings[i].startswith(b" "))
            stop = next(ends_line, None) or next(begins_word, None) or start + room
            pieces.append(words[start:stop])
            # The line break between two turns belongs to neither.
            start = stop if spellings[stop].strip(b"\n") else stop + 1
        return [*pieces, words[start:]] if start < len(words) else pieces


def _texts_of(content: str | Chat | Transcript) -> object:
    if isinstance(content, Transcript):
        return content.text
    return content if isinstance(content, str) else [*content.messages, *content.tools]


def frame_documents(
    model: LoadedModel,
    documents: Sequence[Document],
    framing: Framing,
    *,
    n_ctx: int | None = None,
    parse_special: bool = False,
) -> tuple[FramedDocument, ...]:
    """Frame documents, in order; see Framer."""
    with Framer(model, framing, n_ctx=n_ctx, parse_special=parse_special) as framer:
        return tuple(framed for document in documents for framed in framer.frame(document))


def frame(model: LoadedModel, document: Document, framing: Framing, *, parse_special: bool = False) -> FramedDocument:
    """Frame one document, however long it is; see Framer, which is faster for many."""
    (framed,) = frame_documents(model, [document], framing, parse_special=parse_special)
    return framed
