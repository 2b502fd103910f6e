"""Chat templates rendered as transformers renders them, whoever wrote them.

A template is a program from a file. It runs in jinja2's sandbox, in a child process that may use little time and
memory and cannot write files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from gemma4_quant.errors import ChatTemplateError
from gemma4_quant.limited_process import Answer, LimitedProcess, LimitExceededError, Limits

LIMITS = Limits(seconds=4.0, memory_bytes=400 << 20)
"""For reading a template, and for each conversation; Gemma 4's template takes a few milliseconds and 40 MB."""

Message = Mapping[str, Any]
"""A turn as transformers writes it: `role`, `content` (a text, or a list of parts with `type`), `tool_calls`, …"""

Tool = Mapping[str, Any]
"""A function as a JSON schema: `{"type": "function", "function": {"name": …, "parameters": …}}`."""


@dataclass(frozen=True)
class Conversation:
    """What a template is given.

    messages, tools: see Message and Tool. add_generation_prompt: end with the opening of the model's turn.
    enable_thinking: ask the model to think first. variables: further variables that a template may know.
    """

    messages: Sequence[Message]
    tools: Sequence[Tool] | None = None
    add_generation_prompt: bool = True
    enable_thinking: bool = False
    variables: Mapping[str, Any] | None = None


class ChatTemplate:
    """A template in its child process, for rendering many conversations; a context manager."""

    def __init__(self, template: str, *, bos_token: str = "<bos>", eos_token: str = "<eos>") -> None:
        """Start the child and compile `template`.

        bos_token, eos_token: texts of the tokens that begin and end a sequence. Raises ChatTemplateError when it is
        no template, RunError when no child process starts.
        """
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._process = LimitedProcess("gemma4_quant.chat.template_worker", LIMITS)
        try:
            self._ask({"template": template}, "is none")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return the template."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End the child process."""
        self.close()

    def close(self) -> None:
        """End the child process."""
        self._process.close()

    @property
    def has_ended(self) -> bool:
        """Tell whether the child process was stopped, so that nothing can be rendered any more."""
        return self._process.has_ended

    def render(self, conversation: Conversation) -> str:
        """Return the text that the model reads; raises ChatTemplateError when the template fails or refuses."""
        variables = {
            **self._tokens,
            **(conversation.variables or {}),
            "messages": list(conversation.messages),
            "tools": None if conversation.tools is None else list(conversation.tools),
            "documents": None,
            "add_generation_prompt": conversation.add_generation_prompt,
            "enable_thinking": conversation.enable_thinking,
        }
        return str(self._ask({"variables": variables}, "cannot be rendered")["text"])

    def _ask(self, request: Mapping[str, Any], problem: str) -> Answer:
        try:
            answer = self._process.ask(request)
        except LimitExceededError as error:
            raise ChatTemplateError(f"the chat template {problem}: {error}") from error
        except (TypeError, ValueError) as error:  # json, when a message holds something else than JSON values
            raise ChatTemplateError(
                f"a message or tool is not made of texts, numbers, lists and objects: {error}"
            ) from error
        if "failure" in answer:
            raise ChatTemplateError(f"the chat template {problem}: {answer['failure']}")
        return answer


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] | None = None,
    add_generation_prompt: bool = True,
    enable_thinking: bool = False,
    bos_token: str = "<bos>",
    eos_token: str = "<eos>",
) -> str:
    """Render one conversation; see ChatTemplate, which is faster for many."""
    with ChatTemplate(template, bos_token=bos_token, eos_token=eos_token) as chat:
        return chat.render(
            Conversation(
                messages, tools, add_generation_prompt=add_generation_prompt, enable_thinking=enable_thinking
            )
        )
