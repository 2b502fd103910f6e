"""A child process with limits on time, memory and output, for work on input that may be built to break it.

The parent asks questions and gets answers as lines of JSON; a child that takes too long is killed. Memory is limited
by the operating system where it can be (Linux); the time limit holds everywhere.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gemma4_quant.errors import RunError

_START_S = 60.0
"""How long a child may take to import its modules, on a machine that is busy with other things."""

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """What a child may use: seconds of wall time for each answer, bytes of address space, bytes of one answer."""

    seconds: float
    memory_bytes: int
    answer_bytes: int = 32 << 20


class LimitExceededError(Exception):
    """A child was stopped for using too much, or died of it; the message says what happened."""


class LimitedProcess:
    """A child that runs `serve` in a module of this package; a context manager."""

    def __init__(self, module: str, limits: Limits) -> None:
        """Start the child; raises RunError when it does not get ready."""
        self._limits = limits
        self._timed_out = False
        root = str(Path(__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", module, str(limits.memory_bytes), str(int(limits.seconds) + 60)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "ascii"},
        )
        try:
            self._answer(_START_S)
        except LimitExceededError as error:
            self.close()
            raise RunError(
                f"the helper process {module} does not start ({error}); is the installation whole?"
            ) from error

    def __enter__(self) -> Self:
        """Return the process."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    @property
    def has_ended(self) -> bool:
        """Tell whether the child has ended or was stopped."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the child, whatever it is doing."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was still to be sent has no reader now
                    continue
        self._process.wait()

    def ask(self, request: Mapping[str, Any]) -> Answer:
        """Return the child's answer; raises LimitExceededError when it is stopped or dies, and ends it then."""
        line = json.dumps(request).encode() + b"\n"
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise LimitExceededError("it has ended") from error
        try:
            return self._answer(self._limits.seconds)
        except LimitExceededError:
            self.close()
            raise

    def _answer(self, seconds: float) -> Answer:
        assert self._process.stdout is not None
        alarm = threading.Timer(seconds, self._stop)
        alarm.daemon = True
        alarm.start()
        try:
            line = self._process.stdout.readline(self._limits.answer_bytes + 1)
        finally:
            alarm.cancel()
        if self._timed_out:
            raise LimitExceededError(f"it takes longer than {seconds:g} s")
        if len(line) > self._limits.answer_bytes:
            raise LimitExceededError(f"it makes more than {self._limits.answer_bytes >> 20} MiB of output")
        if not line.endswith(b"\n"):
            raise LimitExceededError(f"it ends its process (exit code {self._process.wait()})")
        answer: Answer = json.loads(line)
        if answer.get("out_of_memory"):
            raise LimitExceededError(f"it takes more than {self._limits.memory_bytes >> 20} MiB of memory")
        return answer

    def _stop(self) -> None:
        self._timed_out = True
        self._process.kill()


def serve(handle: Callable[[Any], Answer]) -> None:
    """Be the child: limit this process, then answer each line of standard input with `handle` until it ends."""
    limit_this_process(int(sys.argv[1]), int(sys.argv[2]))
    _write({})
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except MemoryError:
            answer = {"out_of_memory": True}
        _write(answer)


def limit_this_process(memory_bytes: int, cpu_seconds: int) -> None:
    """Forbid this process more memory, files to write and endless computing, where the system can (not Windows)."""
    try:
        import resource
    except ImportError:
        return
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu_seconds),
    ):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):  # macOS refuses some; the time limit remains
            continue


def _write(answer: Answer) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
