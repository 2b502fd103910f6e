"""Chat templates: rendered as transformers renders them, and harmless whatever they try."""

import json
from typing import Any

import pytest
from places import GOLDEN

from gemma4_quant.chat.template_worker import Renderer
from gemma4_quant.chat.templates import ChatTemplate, Conversation, render_chat
from gemma4_quant.errors import ChatTemplateError

RECORDED: dict[str, Any] = json.loads((GOLDEN / "chat-templates.json").read_text())


@pytest.mark.parametrize("name", RECORDED["templates"])
def test_a_template_renders_as_in_transformers(name: str) -> None:
    with ChatTemplate(RECORDED["templates"][name]) as template:
        for kind, settings in RECORDED["conversations"].items():
            expected = RECORDED["texts"][name][kind]
            if expected is None:
                with pytest.raises(ChatTemplateError):
                    template.render(Conversation(**settings))
            else:
                assert template.render(Conversation(**settings)) == expected, kind


def test_a_refusal_carries_the_templates_own_words() -> None:
    with pytest.raises(ChatTemplateError, match="no system turn"):
        render_chat("{{ raise_exception('no system turn') }}", [])


def test_special_tokens_and_further_variables_reach_the_template() -> None:
    with ChatTemplate("{{ bos_token }}{{ eos_token }}{{ mood }}", bos_token="<s>", eos_token="</s>") as template:
        assert template.render(Conversation([], variables={"mood": "good"})) == "<s></s>good"


def test_a_message_that_is_no_json_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="message"):
        render_chat("{{ messages }}", [{"role": "user", "content": object()}])


_DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = NEXT %}{% endfor %}{{ ns.x }}"

BOMBS = {
    "endless loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a huge range": "{% for i in range(10**12) %}x{% endfor %}",
    "a huge number": "{{ 99999999 ** 99999999 }}",
    "a long repetition": "{{ 'a' * 10000000000 }}",
    "a long list": "{{ [0] * 10000000000 }}",
    "a wide field": "{{ '%9999999999d' | format(1) }}",
    "a centred text": "{{ 'a' | center(10000000000) }}",
    "a justified text": "{{ 'a'.ljust(10000000000) }}",
    "joining": _DOUBLING.replace("NEXT", "ns.x ~ ns.x"),
    "replacing": _DOUBLING.replace("NEXT", "ns.x | replace('a', ns.x)"),
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "much output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "deep brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "deep blocks": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "half a statement": "{% for x in",
}

ESCAPES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "an attribute by filter": "{{ '' | attr('__class__') | attr('__mro__') }}",
    "an attribute by format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "an attribute by format_map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "a namespace's own": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__init__.__globals__ }}",
    "the template's own": "{{ self._TemplateReference__context.environment }}",
    "a generator's frame": "{{ (messages | map('string')).gi_frame.f_globals }}",
    "a file": "{% include '/etc/passwd' %}",
    "a module": "{% import 'os' as os %}{{ os.listdir('/') }}",
    "a message": "{% set _ = messages.append('changed') %}{{ messages }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_cannot_run_on_or_fill_memory(name: str) -> None:
    with pytest.raises(ChatTemplateError, match="chat template") as caught:
        render_chat(BOMBS[name], [])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ESCAPES)
def test_a_template_cannot_reach_out_of_the_sandbox(name: str) -> None:
    render = Renderer()
    answer = render({"template": ESCAPES[name]}) or render({"variables": {"messages": ["kept"]}})
    assert answer.get("text", "") == "", answer
