"""Wrong values in every field of every JSON file of a checkpoint, and files that are wrong as a whole."""

import copy
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from cases import Case
from tiny_models import documents, write_tiny

WRONG_VALUES = (
    "null",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "3",
    "1.5",
    "1e999",
    "-1e-320",
    "2147483647",
    "9223372036854775808",
    "9" * 5000,
    "NaN",
    '""',
    '"x"',
    '"\\ud800"',
    '"\\u0000\\u001b[31m"',
    json.dumps("x" * 100_000),
    "[]",
    "{}",
    "[null]",
    '["x", 1]',
    '{"a": {"b": []}}',
    "[" * 500 + "]" * 500,
)

ABSENT_FIELDS = (
    "attention_bias",
    "is_causal",
    "num_global_key_value_heads",
    "per_layer_config",
    "rms_norm_eps",
    "use_bidirectional_attention",
    "use_double_wide_mlp",
    "tie_word_embeddings",
    "quantization_config",
)
"""Keys of text configs that the tiny ones do not have."""

_MARK = "\u241f wrong value"


def config_cases(work: Path) -> Iterator[Case]:
    """Yield wrong values for each field of config.json: flat, and nested with what the flat one has not."""
    flat = documents("e")["config.json"]
    flat.update({key: None for key in ABSENT_FIELDS if key not in flat})
    yield from field_cases(write_tiny(work / "e") / "config.json", flat)
    directory = write_tiny(work / "moe", "moe")
    done = {key for key in flat if "expert" not in key and key != "architectures"}
    for case in field_cases(directory / "config.json", documents("moe")["config.json"], without=done):
        yield Case(f"nested {case.name}", case.path, case.is_quick)


def small_file_cases(work: Path) -> Iterator[Case]:
    """Yield wrong values for each field of the small JSON files beside config.json."""
    directory = write_tiny(work / "model")
    for name in ("generation_config.json", "special_tokens_map.json", "tokenizer_config.json"):
        document = documents("e")[name]
        yield from field_cases(directory / name, document, every=3)
    index = directory / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"] = dict(list(document["weight_map"].items())[:2])
    yield from field_cases(index, document, every=3)


def tokenizer_cases(work: Path) -> Iterator[Case]:
    """Yield wrong values for each field of tokenizer.json but the single tokens."""
    directory = write_tiny(work / "model")
    document = documents("e")["tokenizer.json"]
    whole = document["model"]["vocab"]
    yield from field_cases(directory / "tokenizer.json", document, skip={"vocab"}, every=3)
    sizes = {
        "no token": {},
        "a token too many": {**whole, "more": len(whole)},
        "a token missing": dict(list(whole.items())[:-1]),
        "ids from one": {text: number + 1 for text, number in whole.items()},
        "ids backwards": {text: len(whole) - 1 - number for text, number in whole.items()},
        "one id for all": dict.fromkeys(whole, 0),
        "huge ids": {text: number << 40 for text, number in whole.items()},
        "ids as texts": {text: str(number) for text, number in whole.items()},
        "no bytes": {text: number for number, text in enumerate(text for text in whole if "<0x" not in text)},
        "empty token": {**{text: number for text, number in whole.items() if number}, "": 0},
        "tokens of a megabyte": {**{text: number for text, number in whole.items() if number > 3}}
        | {letter * 1_000_000: number for number, letter in enumerate("wxyz")},
    }
    for name, vocab in sizes.items():
        document["model"]["vocab"] = vocab
        (directory / "tokenizer.json").write_text(json.dumps(document))
        yield Case(f"tokenizer.json with {name}", directory)
    document["model"]["vocab"] = whole
    merges: dict[str, Any] = {
        "of unknown tokens": [["no", "such"]],
        "all the same": [["a", "b"]] * 10_000,
        "with spaces": [["a b", "c d"]],
        "empty": [["", ""]],
        "of surrogates": [["\ud800", "\udc00"]],
        "with zeros": [["\0", "\0"]],
        "of a megabyte": [["a" * 1_000_000, "b" * 1_000_000]],
    }
    for name, pairs in merges.items():
        document["model"]["merges"] = pairs
        (directory / "tokenizer.json").write_text(json.dumps(document))
        yield Case(f"tokenizer.json with merges {name}", directory)


def whole_file_cases(work: Path) -> Iterator[Case]:
    """Yield files that are no JSON, no object, bombs, or of a wrong encoding."""
    directory = write_tiny(work / "model")
    names = [*documents("e"), "model.safetensors.index.json"]
    for name in names:
        path = directory / name
        right = path.read_bytes()
        for what, content in whole_files(right).items():
            path.write_bytes(content)
            yield Case(f"{name}: {what}", directory)
        path.write_bytes(right)


def bomb_cases(work: Path) -> Iterator[Case]:
    """Yield the largest files that are parsed at all, made of what takes most memory."""
    directory = write_tiny(work / "model")
    for name in ("tokenizer.json", "model.safetensors.index.json"):
        path = directory / name
        right = path.read_bytes()
        for what, (begin, middle, count, end) in _BOMBS.items():
            with path.open("wb") as file:
                file.write(begin)
                for start in range(0, count, _AT_ONCE):
                    file.write(b"".join(middle(number) for number in range(start, min(count, start + _AT_ONCE))))
                file.write(end)
            yield Case(f"{name}: {what}", directory, is_quick=True)
        path.write_bytes(right)


_AT_ONCE = 10_000
_KILOBYTE = b"x" * 1024
_SPACES = b" " * 1024
_BOMBS: dict[str, tuple[bytes, Callable[[int], bytes], int, bytes]] = {
    "a text of 3 MB with a wide letter": ('{"a": "\U0001f680'.encode(), lambda _: _KILOBYTE, 3 << 10, b'"}'),
    "a text of 38 MB with a wide letter": ('{"a": "\U0001f680'.encode(), lambda _: _KILOBYTE, 38 << 10, b'"}'),
    "2.4 million empty objects": (b'{"a": [', lambda _: b"{},", 1_200_000, b"{}]}"),
    "lists in lists": (b'{"a": [', lambda _: b"[[]],", 800_000, b"1]}"),
    "many keys": (b"{", lambda number: b'"%x":1,' % number, 1_200_000, b'"a":1}'),
    "few enough keys": (b"{", lambda number: b'"%x":1,' % number, 300_000, b'"a":1}'),
    "a number of a million digits": (b'{"a": ', lambda _: b"7", 1_000_000, b"}"),
    "100 MB of spaces": (b"", lambda _: _SPACES, 100 << 10, b"{}"),
}
"""Beginning, what is repeated, how often, end."""


def whole_files(right: bytes) -> dict[str, bytes]:
    """Return what no JSON file should be, by what it is."""
    return {
        "empty": b"",
        "one zero byte": b"\0",
        "null": b"null",
        "a list": b"[1]",
        "a text": b'"x"',
        "cut in half": right[: len(right) // 2],
        "two documents": right + right,
        "a comment": b"// x\n" + right,
        "not UTF-8": right.replace(b'"', b'"\xff', 1),
        "UTF-16": right.decode().encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + right,
        "100,000 brackets": b"[" * 100_000,
        "objects in 100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "a key a thousand times": b"{" + b",".join([b'"a":1'] * 1000) + b"}",
        "an empty object": b"{}",
    }


def field_cases(
    path: Path,
    document: dict[str, Any],
    skip: Collection[str] = (),
    *,
    without: Collection[str] = (),
    every: int = 1,
) -> Iterator[Case]:
    """Write `document` to `path` with each value replaced by each wrong one, and yield the directory.

    skip: keys whose values are replaced as a whole only. without: keys whose values stay. every: take one wrong value
    in so many, others for others.
    """
    right = path.read_text()
    for number, (where, changed) in enumerate(_marked(document, skip, without)):
        text = json.dumps(changed)
        for i, value in enumerate(WRONG_VALUES[number % every :: every]):
            path.write_text(text.replace(json.dumps(_MARK), value))
            yield Case(f"{path.name}: {where} = {value[:40]}", path.parent, is_quick=(number + i) % 12 != 0)
    path.write_text(right)


def _marked(
    document: dict[str, Any], skip: Collection[str], without: Collection[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each value and the document with a mark there."""
    for place in _places(document, skip):
        if place[-1] in without:
            continue
        changed = copy.deepcopy(document)
        node: Any = changed
        for step in place[:-1]:
            node = node[step]
        node[place[-1]] = _MARK
        yield ".".join(map(str, place)), changed


def _places(node: Any, skip: Collection[str], above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    steps: list[Any] = list(node) if isinstance(node, dict) else [0] if isinstance(node, list) and node else []
    for step in steps:
        yield (*above, step)
        if step not in skip:
            yield from _places(node[step], skip, (*above, step))
