"""Where output goes: what would stop a file from being written, found out before the work that makes it."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from gemma4_quant.errors import OutputError


def partial_of(output: Path) -> Path:
    """Return the file that holds the bytes until all are there."""
    return output.with_name(output.name + ".partial")


def journal_of(output: Path) -> Path:
    """Return the file that says how far the partial file has come."""
    return output.with_name(output.name + ".partial.journal")


def with_type(output: Path, name: str) -> Path:
    """Put the name of a type where `output`'s file name says {ftype} (or {outtype}, {type}), as llama.cpp does."""
    filled = output.name
    for place in ("ftype", "outtype", "type"):
        filled = filled.replace(f"{{{place}}}", name.lower()).replace(f"{{{place.upper()}}}", name.upper())
    return output.with_name(filled)


def check_destination(output: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError when `output` cannot be written, or when writing it would destroy one of `inputs`."""
    try:
        _refuse_what_is_there(output)
        sources = [path for path in inputs if _is_there(path)]
        for path in (output, partial_of(output), journal_of(output)):
            if path.exists() and any(path.samefile(source) for source in sources):
                raise OutputError(
                    f"writing {output} would overwrite {path}, which is also the source; choose another name"
                )
    except OSError as error:
        raise cannot_write(output, error) from error


def cannot_write(output: Path, error: OSError) -> OutputError:
    """Turn a failure of the operating system into ours."""
    return OutputError(f"cannot write {output}: {error.strerror or error}")


def allocated_bytes(path: Path) -> int:
    """Return the space that a file takes on its disk, 0 when it does not exist."""
    with contextlib.suppress(OSError):
        stat = path.stat()
        return getattr(stat, "st_blocks", stat.st_size // 512) * 512
    return 0


def input_files(source: Path) -> list[Path]:
    """Return what reading `source` may read: the file itself, or a checkpoint's files but for GGUFs made of it."""
    if not source.is_dir():
        return [source]
    return [path for path in source.iterdir() if path.suffix != ".gguf"]


def _refuse_what_is_there(output: Path) -> None:
    if output.is_dir():
        raise OutputError(f"{output} is a directory; name a file in it")
    if output.exists() and not output.is_file():
        raise OutputError(f"{output} is not a regular file; choose another name")
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent} does not exist; create it or choose another place for {output.name}")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"{output.parent} cannot be written to; choose another place for {output.name}")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # whoever reads it will say why it cannot be read
        return False
