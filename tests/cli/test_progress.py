"""Progress in a log: a line for each stage, and now and then how long it will still take."""

import pytest

from gemma4_quant.cli import progress
from gemma4_quant.cli.progress import LineProgress, duration_text


def test_a_long_stage_tells_how_long_it_will_still_take(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 40.0, 50.0, 80.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = LineProgress()
    lines.start("calibrate", 10, "chunk")
    for n in (1, 1, 1, 1, 6):
        lines.advance(n)
    lines.finish()
    assert capsys.readouterr().err.splitlines() == [
        "gemma4-quant: calibrate (10 chunks)",
        "gemma4-quant: calibrate: 20 % done, about 3 min left",  # 40 s for 2 of 10
        "gemma4-quant: calibrate: 40 % done, about 2 min left",  # 80 s for 4 of 10
    ]


def test_stages_without_a_size_say_no_time(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.0)
    lines = LineProgress()
    lines.start("wait", 0, "B")
    lines.advance(5)
    assert capsys.readouterr().err == "gemma4-quant: wait (0.0 MiB)\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5300, "88 min"), (12000, "3 h 20 min")]
)
def test_durations_are_written_with_the_unit_that_says_enough(seconds, text):
    assert duration_text(seconds) == text
