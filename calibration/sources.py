"""What a calibration runs over, cut into chunks: the built-in corpus, texts of the user's, of the model's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemma4_quant.errors import InputError, TextError
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.texts.documents import Document, read_documents
from gemma4_quant.texts.framing import Framing, chosen_framing, frame_documents
from gemma4_quant.texts.packing import mix, pack

BUILT_IN = "built-in corpus"
"""Name of the built-in corpus in importance files and messages."""


@dataclass(frozen=True)
class TextSource:
    """A text, a file of chats or a directory of both. weight: how often its chunks count, beside other sources."""

    path: Path
    weight: float = 1.0

    def __str__(self) -> str:
        """Write it as on the command line: the path, and the weight unless it is 1."""
        return str(self.path) if self.weight == 1 else f"{self.path}={self.weight:g}"


@dataclass(frozen=True)
class Cutting:
    """How texts become chunks.

    n_ctx: tokens of a chunk. framing: None for texts of the user's raw, as llama-imatrix reads them, and all else as
    turns. parse_special: read `<bos>` and the like in plain text as tokens.
    """

    n_ctx: int = 512
    framing: Framing | None = None
    parse_special: bool = False


@dataclass(frozen=True)
class TextChunks:
    """Chunks that a model reads.

    tokens: (n_chunks, n_ctx) int32. datasets: what they come from, for the importance file. framings: how it was
    framed.
    """

    tokens: npt.NDArray[np.int32]
    datasets: tuple[str, ...]
    framings: tuple[Framing, ...]

    def part(self, first: int, n_chunks: int | None) -> "TextChunks":
        """Return `n_chunks` chunks from `first` on, all the rest for None; raises InputError when there are none."""
        tokens = self.tokens[first:][:n_chunks]
        if not len(tokens):
            raise InputError(
                f"there are {len(self.tokens)} chunks, so none is left from chunk {first} on; begin earlier"
            )
        return TextChunks(tokens, self.datasets, self.framings)


def user_chunks(model: LoadedModel, sources: Sequence[TextSource], cutting: Cutting) -> TextChunks:
    """Read texts of the user's and cut each into chunks, mixed by their weights.

    Plain text is raw unless turns are asked for; chats are turns unless raw is. Raises TextError and
    ChatTemplateError naming file and line for what cannot be read, is too short, or cannot be framed.
    """
    parts = [_chunks_of(model, read_documents(source.path), cutting, str(source.path)) for source in sources]
    return TextChunks(
        mix([part.tokens for part in parts], [source.weight for source in sources]),
        tuple(map(str, sources)),
        _framings(parts),
    )


def corpus_chunks(model: LoadedModel, cutting: Cutting) -> TextChunks:
    """Cut the built-in corpus into chunks, as turns unless raw is asked for or the model has no template."""
    from gemma4_quant.calibration.corpus import corpus_documents

    framing = chosen_framing(model, cutting.framing)
    return _packed(model, corpus_documents(), framing, cutting, f"{BUILT_IN}, {framing}")


def document_chunks(model: LoadedModel, documents: Sequence[Document], cutting: Cutting, name: str) -> TextChunks:
    """Cut documents that are read already, as turns unless raw is asked for or the model has no template."""
    return _packed(model, documents, chosen_framing(model, cutting.framing), cutting, name)


def joined(parts: Sequence[TextChunks]) -> TextChunks:
    """Mix chunks of several kinds of sources, evenly spread."""
    if len(parts) == 1:
        return parts[0]
    return TextChunks(
        mix([part.tokens for part in parts], [1.0] * len(parts)),
        tuple(name for part in parts for name in part.datasets),
        _framings(parts),
    )


def _chunks_of(model: LoadedModel, documents: Sequence[Document], cutting: Cutting, name: str) -> TextChunks:
    plain = [document for document in documents if isinstance(document.content, str)]
    chats = [document for document in documents if not isinstance(document.content, str)]
    raw = plain if cutting.framing is None else documents if cutting.framing is Framing.RAW else []
    turns = chats if cutting.framing is None else documents if cutting.framing is Framing.TURN else []
    parts = [
        _packed(model, members, framing, cutting, name)
        for members, framing in ((raw, Framing.RAW), (turns, Framing.TURN))
        if members
    ]
    if not parts:
        raise TextError(f"{name} holds no text")
    return joined(parts)


def _packed(
    model: LoadedModel, documents: Sequence[Document], framing: Framing, cutting: Cutting, name: str
) -> TextChunks:
    n_ctx = cutting.n_ctx
    framed = frame_documents(model, documents, framing, n_ctx=n_ctx, parse_special=cutting.parse_special)
    return TextChunks(pack(model, framed, framing, n_ctx, source=name).tokens, (name,), (framing,))


def _framings(parts: Sequence[TextChunks]) -> tuple[Framing, ...]:
    return tuple(dict.fromkeys(framing for part in parts for framing in part.framings))
