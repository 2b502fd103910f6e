"""Thousands of hostile inputs through every reader: each is read, or refused by an error of ours; none does harm.

Each set of groups runs in a process of its own (run_cases.py): what crashes, hangs or eats memory ends that process.
"""

import json
import queue
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

SILENCE_S = 120.0
"""No single reading takes so long on the busiest machine; computing time is limited to 5 seconds within."""

SETS = {
    "JSON": {
        "config fields": 1300,
        "fields of small files": 150,
        "tokenizers": 200,
        "whole JSON files": 80,
        "JSON bombs": 16,
    },
    "checkpoint": {"safetensors headers": 150, "indexes": 35, "traps": 70, "model cards": 15},
    "GGUF": {"GGUF structure": 1500, "GGUF cuts": 800, "GGUF documents": 20, "GGUF metadata": 60},
    "companions": {"adapters": 300},
    "projectors": {"projectors": 300},
    "splits": {"splits": 60},
    "verify": {"verify": 10, "verify documents": 20},
    "importance": {"importance": 400},
}
"""Groups of cases that run in one process, and how many each has at least."""

LONGEST_MESSAGE = 40_000
"""Characters; a message may list all tensors of a model."""


def run_set(name: str) -> list[dict[str, Any]]:
    """Return what the process of a set says, line by line; fails when it ends early or is silent for long."""
    command = [sys.executable, str(Path(__file__).with_name("run_cases.py")), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines: queue.Queue[str | None] = queue.Queue()
        assert process.stdout is not None
        assert process.stderr is not None
        threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True).start()
        errors: list[str] = []
        threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True).start()
        said: list[dict[str, Any]] = []
        try:
            while (line := lines.get(timeout=SILENCE_S)) is not None:
                said.append(json.loads(line))
        except queue.Empty:
            process.kill()
            pytest.fail(f"{name} hangs after {said[-1:]}")
        code = process.wait()
    last = next((each["begins"] for each in reversed(said) if "begins" in each), "the start")
    assert code == 0, f"{name} ended with {code} in {last!r}: {''.join(errors)[-3000:]}"
    assert said[-1]["done"] == name
    return said


def _forward(stream: Any, lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


@pytest.mark.parametrize("name", SETS)
def test_hostile_input_is_read_or_refused_and_leaves_nothing(name: str) -> None:
    said = run_set(name)
    outcomes = [each for each in said if "reader" in each]
    n_cases = Counter(each["group"] for each in said if "begins" in each)
    assert {group: n_cases[group] for group, least in SETS[name].items() if n_cases[group] < least} == {}
    assert [each for each in outcomes if each["crash"]] == []
    refused = [each for each in outcomes if each["error"]]
    assert refused
    assert [each for each in refused if each["left"]] == []
    assert [each for each in refused if not _names_its_place(each)] == []
    assert [each["case"] for each in refused if len(each["error"]) > LONGEST_MESSAGE] == []


def _names_its_place(outcome: dict[str, Any]) -> bool:
    """Tell whether a message names a file of the case, the text that does not fit it, or a tensor of the model."""
    places = [*outcome["names"], "text.txt", "layers.", "blk.", "per_layer_", "token_embd", "output_norm"]
    return any(place in outcome["error"] for place in places)
