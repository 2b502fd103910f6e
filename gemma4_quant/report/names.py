"""Short names for files, each different from the others."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gemma4_quant.report.printable import cut, printable

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_MAX_NAME = 120
"""Longer names are cut in the middle: no table or page is made unreadable by one."""


def file_name(path: Path) -> str:
    """Return a file's name without `.gguf`, the number of its shard and what is not printable."""
    name = _SHARD.sub("", printable(path.name).removesuffix(".gguf"))
    return cut(name, _MAX_NAME) or "?"


def file_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return a name for each path; equal ones get their folder before them, and where that is equal too a number."""
    names = [file_name(path) for path in paths]
    common = Counter(names)
    names = [
        cut(f"{printable(path.parent.name)}/{name}", _MAX_NAME) if common[name] > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]
    seen: Counter[str] = Counter()
    total = Counter(names)
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name} ({seen[name]})" if total[name] > 1 else name)
    return tuple(numbered)
