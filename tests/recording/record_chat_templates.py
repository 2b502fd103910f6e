"""Record how transformers renders chat templates: run `python tests/recording/record_chat_templates.py` with it.

Writes tests/golden/chat-templates.json: templates of our own that use what transformers adds to jinja2, and the
example's, each with conversations and the text that transformers 5 makes of them (null where it refuses).
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "chat-templates.json"

USER = {"role": "user", "content": "  What is <b> & 'c'?\n"}
PARTS = {
    "role": "user",
    "content": [{"type": "image"}, {"type": "text", "text": " Tell me. "}, {"type": "audio"}],
}
CALL = {
    "role": "assistant",
    "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": {"é": "ü < 3", "b": [1, 2.5, True, None]}}}
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": "Look up “x” & y.",
            "parameters": {"type": "object", "properties": {"é": {"type": "string"}}, "required": ["é"]},
        },
    }
]
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "user": {"messages": [USER]},
    "system": {"messages": [{"role": "system", "content": " Be brief. "}, USER]},
    "turns": {"messages": [USER, {"role": "assistant", "content": "An answer."}, USER]},
    "finished": {"messages": [USER, {"role": "assistant", "content": "An answer."}], "add_generation_prompt": False},
    "thinking": {"messages": [USER], "enable_thinking": True},
    "parts": {"messages": [PARTS]},
    "tools": {"messages": [USER, CALL, {"role": "tool", "content": "{}"}], "tools": TOOLS},
}

TEMPLATES = {
    "json": "{{ tools | tojson }}|{{ tools | tojson(indent=2) if tools }}|{{ messages | tojson }}",
    "controls": (
        "{% for message in messages %}\n"
        "    {% if message.role == 'system' %}\n"
        "        {% continue %}\n"
        "    {% endif %}\n"
        "    {% if loop.index > 2 %}{% break %}{% endif %}\n"
        "  {{ message.role }}: {{ message.content }}\n"
        "{% endfor %}\n"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "<m>{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}<u>{{ m.content | trim }}{% endif %}{% endfor %}{% if add_generation_prompt %}<m>{% endif %}"
    ),
    "refusal": "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ bos_token }}",
    "namespace": (
        "{% set ns = namespace(n=0, dict=dict(a=1)) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }} {{ ns.dict.a }} {{ unknown }}{{ documents is none }} {{ enable_thinking | default(false) }}"
    ),
    "date": "{{ strftime_now('%%') }}",
    "example": (ROOT / "examples" / "tiny-gemma4-e" / "chat_template.jinja").read_text(),
}


def rendered(template: str, conversation: dict[str, Any]) -> str | None:
    """Return what transformers makes of a conversation, None when it raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    settings = {"add_generation_prompt": True, "enable_thinking": False, "tools": None} | conversation
    messages = settings.pop("messages")
    try:
        texts, _ = render_jinja_template(
            [messages], chat_template=template, bos_token="<bos>", eos_token="<eos>", **settings
        )
    except Exception as error:  # noqa: BLE001 - jinja2 and Python both raise; what counts is that it refuses
        print(type(error).__name__, error)  # noqa: T201
        return None
    return str(texts[0])


def main() -> None:
    """Write the golden file."""
    texts = {
        name: {kind: rendered(template, conversation) for kind, conversation in CONVERSATIONS.items()}
        for name, template in TEMPLATES.items()
    }
    facts = {"templates": TEMPLATES, "conversations": CONVERSATIONS, "texts": texts}
    GOLDEN.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
