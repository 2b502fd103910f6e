"""What the tokens of a loaded model spell, and which of them are no words."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma4_quant.chat.model_template import TOKENS
from gemma4_quant.errors import RunError
from gemma4_quant.runner.llama_library import libraries
from gemma4_quant.runner.weights import LoadedModel, Tokens

_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL (llama.h)
_MARKER = re.compile(r"<\|[^<>|\s]+\|?>|<[^<>|\s]+\|>")
"""Gemma 4's markers, such as `<|channel>` and `<|"|>`. Files type them as control tokens, as tokens that users define
and, where the checkpoint's tokenizer_config.json does not list them, as ordinary ones."""

_MAX_SPELLING_BYTES = 1 << 16


class Vocabulary:
    """The tokens of a model; what is asked is remembered, for a model has few different ones in a text."""

    def __init__(self, model: LoadedModel) -> None:
        """Look into the vocabulary of a model, which must stay open."""
        self._llama: Any = libraries().llama
        self._vocab: Any = self._llama.llama_model_get_vocab(model.handle)
        self._spellings: dict[int, bytes] = {}
        self._model = model

    @cached_property
    def markers(self) -> Mapping[str, int]:
        """Ids of the markers that are tokens, by their texts."""
        texts = self._model.file.metadata[TOKENS].decode()
        return {text: token for token, text in enumerate(texts) if _MARKER.fullmatch(text)}

    @cached_property
    def _marker_ids(self) -> frozenset[int]:
        return frozenset(self.markers.values())

    def tokenise_marked(self, text: str) -> Tokens:
        """Return the tokens of a text in which markers and special tokens are read as such, without adding BOS.

        llama.cpp reads markers that a file types as ordinary tokens as letters; here they are tokens all the same, as
        for the checkpoint's own tokenizer.
        """
        if not self.markers:
            return self._model.tokenise(text, add_special=False, parse_special=True)
        parts = re.split(f"({'|'.join(map(re.escape, self.markers))})", text)
        return np.concatenate(
            [
                np.array([self.markers[part]], np.int32)
                if i % 2
                else self._model.tokenise(part, add_special=False, parse_special=True)
                for i, part in enumerate(parts)
            ]
        )

    def spelling(self, token: int) -> bytes:
        """Return what a token spells, special ones by their names; raises RunError when there is no such token."""
        known = self._spellings.get(token)
        if known is not None:
            return known
        if not 0 <= token < self._model.n_vocab:
            raise RunError(f"{token} is no token of {self._model.path}, which has {self._model.n_vocab}")
        size = 64
        while True:
            buffer = bytes(size)
            n_bytes = int(self._llama.llama_token_to_piece(self._vocab, token, buffer, size, 0, True))
            if n_bytes >= 0:
                break
            size = -n_bytes
            if size > _MAX_SPELLING_BYTES:
                raise RunError(f"token {token} of {self._model.path} spells {size} bytes; is the vocabulary damaged?")
        self._spellings[token] = buffer[:n_bytes]
        return buffer[:n_bytes]

    def text(self, tokens: Tokens) -> str:
        """Return what tokens spell together; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.spelling, tokens.tolist())).decode(errors="replace")

    def n_bytes(self, tokens: Tokens) -> npt.NDArray[np.int64]:
        """Return how many bytes each token spells, (n,) int64."""
        unique, inverse = np.unique(tokens, return_inverse=True)
        lengths = np.array([len(self.spelling(token)) for token in unique.tolist()], np.int64)
        return lengths[inverse] if len(unique) else lengths

    def are_markers(self, tokens: Tokens) -> npt.NDArray[np.bool_]:
        """Tell of each token whether it marks turns, channels, tools and the like and is no word, (n,) bool."""
        unique, inverse = np.unique(tokens, return_inverse=True)
        found = np.array([self._is_marker(token) for token in unique.tolist()], np.bool_)
        return found[inverse] if len(unique) else found

    def _is_marker(self, token: int) -> bool:
        attributes = int(self._llama.llama_vocab_get_attr(self._vocab, token))
        return bool(attributes & _CONTROL) or token in self._marker_ids

    def ends_turn(self, token: int) -> bool:
        """Tell whether a model that says this token has finished: the end of its turn, or of the text."""
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def ends_text(self, token: int) -> bool:
        """Tell whether a token ends the whole text (`<eos>`), or begins another one (`<bos>`)."""
        return token in (int(self._llama.llama_vocab_eos(self._vocab)), self._model.bos)
