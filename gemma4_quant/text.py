"""Text files as the chunks of tokens that calibration and evaluation work on, cut as llama.cpp's tools cut them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemma4_quant.errors import InputError, TextError
from gemma4_quant.runner.weights import LoadedModel, Tokens


@dataclass(frozen=True)
class Chunks:
    """Chunks of a text.

    tokens: (n_chunks, n_ctx) int32, what the model reads: the first of each chunk is BOS where the model wants it.
    n_text_tokens: tokens of the whole text, of which the last may fill no chunk.
    """

    tokens: npt.NDArray[np.int32]
    n_text_tokens: int


def read_text(path: Path) -> str:
    """Read a UTF-8 text, without its last line break, as llama.cpp's tools do.

    Raises TextError when the file is missing, unreadable, empty or not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TextError(f"cannot read the text {path}: {error.strerror}") from error
    try:
        text = raw.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 text (byte {error.start}); convert it, or give another file") from error
    if not text.strip():
        raise TextError(f"the text {path} is empty")
    return text


def chunk_text(
    model: LoadedModel, path: Path, n_ctx: int, n_chunks: int | None = None, *, parse_special: bool = False
) -> Chunks:
    """Tokenise a text and cut it into chunks of `n_ctx` tokens, as llama.cpp's tools do.

    n_chunks: at most so many; None for all. parse_special: see LoadedModel.tokenise. Raises TextError when the
    text has fewer than 2·n_ctx tokens, the least that llama.cpp's tools accept.
    """
    tokens = model.tokenise(read_text(path), parse_special=parse_special)
    return cut_chunks(model, tokens, n_ctx, n_chunks, source=str(path), least=2)


def cut_chunks(
    model: LoadedModel, tokens: Tokens, n_ctx: int, n_chunks: int | None = None, *, source: str, least: int = 1
) -> Chunks:
    """Cut tokens into chunks of `n_ctx`; the first of each becomes BOS where the model wants it.

    n_chunks: at most so many; None for all. source: names the text in messages. Raises TextError when there are
    fewer tokens than `least` chunks take.
    """
    if n_ctx < 2:
        raise InputError(f"a context of {n_ctx} tokens predicts nothing; use at least 2")
    if n_chunks is not None and n_chunks < 1:
        raise InputError(f"{n_chunks} chunks are asked for; use at least 1")
    if len(tokens) < least * n_ctx:
        raise TextError(
            f"{source} has {len(tokens)} tokens, but a context of {n_ctx} needs at least {least * n_ctx}; "
            f"give a longer text or a shorter context (-c {max(2, len(tokens) // least)})"
        )
    found = len(tokens) // n_ctx
    used = found if n_chunks is None else min(n_chunks, found)
    chunks = tokens[: used * n_ctx].reshape(used, n_ctx).copy()
    if model.add_bos:
        chunks[:, 0] = model.bos
    return Chunks(chunks, len(tokens))
