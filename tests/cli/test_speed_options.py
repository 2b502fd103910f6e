"""Options of speed tests against what llama-bench makes of the same arguments, and nonsense."""

import json

import pytest
from speed_cases import RECORDED, read_plan
from typer.testing import CliRunner

from gemma4_quant.cli.app import app
from gemma4_quant.ggml import GgmlType
from gemma4_quant.measuring.speed_plan import SpeedPlan, SpeedSettings
from gemma4_quant.runner.devices import devices


def recorded_tests(run: str) -> list[str]:
    """Return the test names of llama-bench's table, in order."""
    rows = [line.split("|") for line in RECORDED[run]["md"].splitlines()[2:] if line.startswith("|")]
    return [row[-3].strip() for row in rows]


@pytest.mark.parametrize("run", sorted(RECORDED))
def test_the_tests_and_their_order_are_those_of_llama_bench(run):
    plan = read_plan(RECORDED[run]["arguments"])
    assert [test.name for _, test in plan.runs()] == recorded_tests(run)


def test_no_options_mean_llama_bench_s_defaults():
    assert read_plan([]) == SpeedPlan()
    assert [test.name for _, test in SpeedPlan().runs()] == ["pp512", "tg128"]


def test_repeated_options_and_lists_by_commas_mean_the_same():
    assert read_plan(["-t", "1,2", "-d", "0", "-d", "8"]) == read_plan(["-t", "1", "-t", "2", "-d", "0,8"])


def test_every_option_reaches_the_settings():
    arguments = "-ngl 3 -dev A/B -b 64 -ub 8 -ctk q8_0 -ctv Q4_0 -fa off -t 2 -r 7 --no-warmup --delay 0.5"
    plan = read_plan(arguments.split())
    (settings,) = plan.settings()
    assert settings == SpeedSettings(
        n_gpu_layers=3,
        devices=("A", "B"),
        n_batch=64,
        n_ubatch=8,
        key_type=GgmlType.Q8_0,
        value_type=GgmlType.Q4_0,
        flash_attention=False,
        n_threads=2,
    )
    assert (plan.repetitions, plan.warm_up, plan.delay_s) == (7, False, 0.5)


def test_devices_may_be_left_to_llama_cpp_or_be_none():
    assert read_plan(["-dev", "auto,none,A"]).devices == (None, (), ("A",))


@pytest.mark.parametrize(
    "arguments",
    [
        *("-p -1", "-p x", "-p 4-2", "-p 2-8*1", "-p 0-9*2", "-p 1-", "-p 1,,2", "-p 1-100000", "-p ٣"),
        *("-pg 5", "-pg 1,2,3", "-pg a,b", "-b 0", "-t 0", "-ngl -2", "-ctk q4_k", "-ctv", "-fa maybe"),
        *("-dev A//B", "-r 0", "--delay -1", "-p 1e3", "-p 9999999999"),
    ],
)
def test_values_that_are_none_are_refused(arguments):
    with pytest.raises(ValueError, match="Error"):
        read_plan(arguments.split(" "))


def test_devices_are_listed_without_any_model():
    result = CliRunner().invoke(app, ["bench", "--list-devices"])
    assert result.exit_code == 0
    assert f"CPU ({next(device.description for device in devices() if device.is_cpu)})" in result.output


def test_speed_of_the_command_comes_in_llama_bench_s_format(example_bf16):
    arguments = ["-p", "8", "-n", "0", "-t", "1", "-r", "2", "--no-score", "-o", "jsonl"]
    result = CliRunner().invoke(app, ["bench", str(example_bf16), *arguments])
    assert result.exit_code == 0, result.output
    (row,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert list(row) == list(json.loads(RECORDED["defaults"]["jsonl"].splitlines()[0]))
    assert (row["n_prompt"], row["model_filename"], len(row["samples_ns"])) == (8, str(example_bf16), 2)
