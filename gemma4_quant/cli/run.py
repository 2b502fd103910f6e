"""What all commands share: failures as one line and an exit code, results on stdout, progress on stderr."""

import dataclasses
import functools
import io
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ParamSpec

import typer

from gemma4_quant.cli.progress import BarProgress, LineProgress
from gemma4_quant.errors import Gemma4QuantError, OutputError
from gemma4_quant.progress import Progress
from gemma4_quant.report import numbers
from gemma4_quant.report.printable import printable

size_text = numbers.size_text

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130

P = ParamSpec("P")


def command(app: typer.Typer, *, examples: list[str]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a command whose help ends with `examples` and whose known failures are one line on stderr."""
    epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except Gemma4QuantError as error:
                fail(str(error), EXIT_FAILURE)
            except MemoryError:
                fail("not enough memory; close other programs or use fewer threads (-t)", EXIT_FAILURE)
            except KeyboardInterrupt:
                fail("interrupted", EXIT_INTERRUPTED)

        app.command(epilog=epilog, no_args_is_help=True)(guarded)
        return guarded

    return register


def fail(message: str, code: int) -> None:
    """Print one line on stderr and leave with `code`."""
    one_line = printable(" ".join(message.split()))
    sys.stderr.write(f"gemma4-quant: error: {one_line}\n")
    raise typer.Exit(code)


class _OneLine(logging.Formatter):
    """A log message as one line without control characters: it may quote names from a hostile file."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(" ".join(super().format(record).split()))


def set_up_logging(*, verbose: bool) -> None:
    """Send the library's warnings (and, if `verbose`, its notes) to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("gemma4-quant: %(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("gemma4_quant").setLevel(logging.DEBUG if verbose else logging.WARNING)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.addLevelName(level, logging.getLevelName(level).lower())


def terminal_progress() -> Progress:
    """Return bars on a terminal, a line for each stage elsewhere."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def emit(result: Any, *, as_json: bool, text: str) -> None:
    """Print a result (or a list) on stdout: a JSON object (or array) for programs, or `text` for people."""
    if as_json:
        plain = (
            [dataclasses.asdict(each) for each in result] if isinstance(result, list) else dataclasses.asdict(result)
        )
        text = json.dumps(_finite(plain), default=_plain, indent=2, allow_nan=False)
    emit_text(text, as_is=as_json)


def emit_text(text: str, *, as_is: bool) -> None:
    """Print text on stdout; as_is: for programs, else control characters in it are replaced."""
    if not as_is:
        text = "\n".join(printable(line) for line in text.split("\n"))
    if sys.stdout is None:  # closed by the caller, who does not want it
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, such as `head`, has enough
    except OSError as error:
        raise OutputError(f"cannot write the result: {error.strerror}") from error


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot say, by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} in a result")


def files_text(files: Sequence[Path]) -> str:
    """Write which files an output consists of: its path, or the first and last of its shards."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"
