"""How texts begin that a model writes for its calibration: with a prompt in its template, its words, or nothing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np

from gemma4_quant.calibration.prompts import Prompt
from gemma4_quant.calibration.self_text_file import Line
from gemma4_quant.errors import ChatTemplateError
from gemma4_quant.runner.generation import Opening
from gemma4_quant.runner.weights import LoadedModel
from gemma4_quant.texts.documents import Chat
from gemma4_quant.texts.framing import Framer, Framing, has_template
from gemma4_quant.texts.turns import split_thoughts, words_of

logger = logging.getLogger(__name__)

_ROOM = 64
"""Positions that a prompt must leave for the answer."""


@dataclass(frozen=True)
class Beginning:
    """How a text begins.

    name: of the prompt, or `free`. opening: what the model goes on from. chat: the prompt that it answers by its
    template; None where it goes on from `text`, which may be empty.
    """

    name: str
    opening: Opening
    chat: Chat | None
    text: str = ""

    @property
    def is_answer(self) -> bool:
        """Whether the model answers a prompt by its template."""
        return self.chat is not None

    def line(self, said: str) -> Line:
        """Return the line of the file when the model has said `said`."""
        said = said.rstrip("\ufffd")  # of a character whose last bytes were not said any more
        if self.chat is None:
            return {"name": self.name, "transcript": self.text + said}
        thoughts, words = split_thoughts(said)
        answer = {"role": "assistant", **({"reasoning_content": thoughts} if thoughts else {}), "content": words}
        tools = {"tools": list(self.chat.tools)} if self.chat.tools else {}
        return {"name": self.name, "messages": [*self.chat.messages, answer], **tools, "thinking": self.chat.thinking}


class Beginnings:
    """Makes the beginning of each text of a run, always the same one for a number."""

    def __init__(self, model: LoadedModel, prompts: Sequence[Prompt], free_share: float) -> None:
        """Get ready; free_share: part of the texts that begin with BOS alone."""
        self._model = model
        self._prompts = prompts
        self._free_share = free_share if prompts else 1.0
        self._framer = Framer(model, Framing.TURN)
        self._has_turns = has_template(model)
        self._n_rendered = 0

    def close(self) -> None:
        """End the template's process."""
        self._framer.close()

    def make(self, number: int, *, only_raw: bool) -> Beginning:
        """Return the beginning of a text; only_raw: leave the template alone, for the model does not answer in it.

        Without a template, or where it refuses a prompt, the model goes on from the prompt's words; where a prompt
        leaves no room for an answer it begins with nothing.
        """
        n_free = floor(number * self._free_share)
        if floor((number + 1) * self._free_share) > n_free:
            return self._free(number)
        prompt = self._prompts[(number - n_free) % len(self._prompts)]
        beginning = None if only_raw or not self._has_turns else self._answer(number, prompt)
        beginning = beginning or self._raw(number, prompt)
        return beginning if len(beginning.opening.tokens) <= self._model.n_ctx_train - _ROOM else self._free(number)

    def _answer(self, number: int, prompt: Prompt) -> Beginning | None:
        chat = Chat(prompt.messages, prompt.tools, prompt.thinking)
        try:
            tokens = self._framer.opening(chat)
        except ChatTemplateError as error:
            logger.warning("the model goes on from the words of prompt %s, for %s", prompt.name, error)
            # A template that has rendered nothing yet is broken, or ended its process: it would fail each time.
            self._has_turns = self._n_rendered > 0 and not self._framer.has_ended
            return None
        self._n_rendered += 1
        return Beginning(prompt.name, Opening(tokens, stream=number), chat)

    def _raw(self, number: int, prompt: Prompt) -> Beginning:
        text = words_of(Chat(prompt.messages)) + "\n\n"
        tokens = self._model.tokenise(text)
        return Beginning(prompt.name, Opening(tokens, number, stops_at_turn=False), None, text)

    def _free(self, number: int) -> Beginning:
        tokens = self._model.tokenise("") if self._model.add_bos else np.array([max(0, self._model.bos)], np.int32)
        return Beginning("free", Opening(tokens, number, stops_at_turn=False), None)
