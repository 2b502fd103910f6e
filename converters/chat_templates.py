"""Chat templates of a checkpoint, from the three places where transformers has put them over time."""

from collections.abc import Mapping
from typing import Any

from gemma4_quant.errors import CheckpointError
from gemma4_quant.formats.checkpoint import Checkpoint, find_checkpoint_file
from gemma4_quant.formats.json_input import read_bounded
from gemma4_quant.metadata import Value, string, strings

MAX_TEMPLATE_BYTES = 4 << 20
"""Gemma 4's template has about 20 kB."""

MAX_TEMPLATES = 64

KEY = "tokenizer.chat_template"


def template_metadata(checkpoint: Checkpoint, tokenizer_config: Mapping[str, Any]) -> dict[str, Value]:
    """Return the chat template keys.

    tokenizer_config.json's `chat_template` wins over chat_template.jinja (with additional_chat_templates/*.jinja
    beside it), which wins over chat_template.json, as in gguf.SpecialVocab. Raises CheckpointError for a template
    that is not UTF-8 text.
    """
    found = tokenizer_config.get("chat_template") if "chat_template" in tokenizer_config else _from_files(checkpoint)
    if isinstance(found, str):
        return {KEY: _text(found)}
    named: dict[str, str] = {}
    for entry in found[:MAX_TEMPLATES] if isinstance(found, list) else []:
        name, template = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if isinstance(name, str) and name and isinstance(template, str):
            named["".join(c if c.isascii() and c.isalnum() else "_" for c in name)] = template
    default = named.pop("default", None)
    return {
        **{f"{KEY}.{name}": _text(template) for name, template in named.items()},
        **({"tokenizer.chat_templates": strings(sorted(named))} if named else {}),
        **({KEY: _text(default)} if default is not None else {}),
    }


def _from_files(checkpoint: Checkpoint) -> Any:
    main = checkpoint.find_file("chat_template.jinja")
    if main is None:
        return (checkpoint.read_json("chat_template.json") or {}).get("chat_template")
    templates = [{"name": "default", "template": _read_text(checkpoint, "chat_template.jinja")}]
    folder = checkpoint.directory / "additional_chat_templates"
    for path in sorted(folder.glob("*.jinja"))[:MAX_TEMPLATES]:
        name = f"additional_chat_templates/{path.name}"
        templates.append({"name": path.stem, "template": _read_text(checkpoint, name)})
    return templates if len(templates) > 1 else templates[0]["template"]


def _read_text(checkpoint: Checkpoint, name: str) -> str:
    path = find_checkpoint_file(checkpoint.directory, name)
    if path is None:
        raise CheckpointError(f"{checkpoint.directory / name} is gone")
    try:
        return read_bounded(path, MAX_TEMPLATE_BYTES).decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _text(template: str) -> Value:
    try:
        return string(template)
    except UnicodeEncodeError as error:
        raise CheckpointError(
            "the chat template of tokenizer_config.json or chat_template.json holds half of a surrogate pair, no text"
        ) from error
