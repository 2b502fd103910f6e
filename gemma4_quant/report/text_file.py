"""Reports as files: whole or not at all."""

import os
from collections.abc import Iterable
from pathlib import Path

from gemma4_quant.writing.destination import cannot_write, check_destination, partial_of


def check_text_file(path: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError when a text cannot be written to `path`, or would destroy one of the inputs."""
    check_destination(path, inputs)


def write_text_file(path: Path, text: str) -> None:
    """Write a text as UTF-8 under another name, then give it its own; raises OutputError when that fails.

    Letters that are no Unicode, as names of files may have, are written as question marks.
    """
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            file.write(text.encode("utf-8", errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
