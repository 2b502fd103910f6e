"""The child process of `chat`: jinja2's sandbox as transformers sets it up, with the helpers its templates expect.

Source: transformers, utils/chat_template_utils.py (whitespace control, loop controls, `tojson` without HTML escapes,
`raise_exception`, `strftime_now`, the `generation` block that marks what the model said).
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma4_quant.limited_process import serve

MAX_OUTPUT_CHARACTERS = 4 << 20
"""Characters of one rendered conversation, some million tokens."""

_MAX_REPETITION = 1 << 20
"""Length of a text or list that `*` may make: memory is not limited on every system."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}`: renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with repetition and powers bounded."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            sizes = [len(item) for item in (left, right) if isinstance(item, str | list | tuple)]
            counts = [item for item in (left, right) if isinstance(item, int)]
            if sizes and counts and sizes[0] * counts[0] > _MAX_REPETITION:
                raise jinja2.TemplateRuntimeError("a repetition is too long")
        if operator == "**" and (abs(left) > 1 << 31 or abs(right) > 64):
            raise jinja2.TemplateRuntimeError("a power is too large")
        return super().call_binop(context, operator, left, right)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without names that reach into Python's own."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"{name!r} is not a name for a namespace")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.pop("lipsum", None)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_now, namespace=_Namespace)
    return environment


class Renderer:
    """Compiles the last template it was given, and renders."""

    def __init__(self) -> None:
        """Begin without a template."""
        self._environment = _environment()
        self._template: jinja2.Template | None = None

    def __call__(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Take `{"template": …}` or `{"variables": …}`; answer `{"text": …}`, or `{"failure": …}` with the reason."""
        try:
            if "template" in request:
                self._template = self._environment.from_string(request["template"])
                return {}
            return {"text": self._render(request["variables"])}
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a template can raise whatever Python can
            return {"failure": _reason(error)}

    def _render(self, variables: Mapping[str, Any]) -> str:
        if self._template is None:
            raise jinja2.TemplateRuntimeError("there is no template")
        pieces, length = [], 0
        for piece in self._template.generate(variables):
            length += len(piece)
            if length > MAX_OUTPUT_CHARACTERS:
                raise jinja2.TemplateRuntimeError(f"it makes more than {MAX_OUTPUT_CHARACTERS:,} characters")
            pieces.append(piece)
        return "".join(pieces)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"{type(error).__name__}{line}: {str(error)[:300]}"


if __name__ == "__main__":
    serve(Renderer())
