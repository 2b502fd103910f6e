"""The child process for work on input that nobody vouches for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gemma4_quant.errors import RunError
from gemma4_quant.limited_process import LimitedProcess, LimitExceededError, Limits

WORKER = """
import os, sys, time
from pathlib import Path
from gemma4_quant.limited_process import serve

def handle(request):
    match request["do"]:
        case "echo":
            return {"echo": request["text"]}
        case "sleep":
            time.sleep(60)
        case "allocate":
            return {"length": len(bytearray(request["n"]))}
        case "talk":
            return {"text": "x" * request["n"]}
        case "die":
            os._exit(3)
        case "write":
            try:
                Path(request["path"]).write_bytes(bytes(100))
            except OSError as error:
                return {"error": error.strerror}
    return {}

serve(handle)
"""

LIMITS = Limits(seconds=2.0, memory_bytes=300 << 20, answer_bytes=1 << 20)


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LimitedProcess]:
    (tmp_path / "hostile_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with LimitedProcess("hostile_worker", LIMITS) as started:
        yield started


def test_questions_are_answered_in_turn(process: LimitedProcess) -> None:
    for text in ("", "é\n\u2028 \ud800", "x" * 100_000):
        assert process.ask({"do": "echo", "text": text}) == {"echo": text}
    assert not process.has_ended


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"do": "sleep"}, "longer than 2 s"),
        ({"do": "talk", "n": 2 << 20}, "more than 1 MiB of output"),
        ({"do": "die"}, r"ends its process \(exit code 3\)"),
        ({"do": "allocate", "n": 1 << 32}, "more than 300 MiB of memory"),
    ],
)
def test_a_child_that_exceeds_a_limit_is_ended(
    process: LimitedProcess, request_: dict[str, object], reason: str
) -> None:
    with pytest.raises(LimitExceededError, match=reason):
        process.ask(request_)
    assert process.has_ended
    with pytest.raises(LimitExceededError, match="has ended"):
        process.ask({"do": "echo", "text": ""})


def test_a_child_cannot_write_files(process: LimitedProcess, tmp_path: Path) -> None:
    assert "large" in process.ask({"do": "write", "path": str(tmp_path / "written")})["error"]
    assert (tmp_path / "written").stat().st_size == 0


def test_a_child_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RunError, match="does not start"):
        LimitedProcess("gemma4_quant.no_such_module", LIMITS)
