"""Runs against each other: what differs in the conditions comes first, chance is not taken for a difference."""

import random
from dataclasses import replace
from statistics import NormalDist, mean, stdev

import pytest
import report_results

from gemma4_quant.errors import InputError
from gemma4_quant.measuring.results import Estimate
from gemma4_quant.report.comparison import Verdict, compare_runs, difference_of
from gemma4_quant.report.comparison_text import comparison_markdown, comparison_text
from gemma4_quant.report.formats import formatted
from gemma4_quant.report.page import html_report
from gemma4_quant.report.plots.data import Interval
from gemma4_quant.report.speed_formats import SpeedFormat

RUN = report_results.bench_result(3, depths=(0,))


def with_model(run, number, bits, kl):
    """Return a run with another file, and other scores, under the name of one of its models."""
    path = str(run.models[number].file.path)
    model = report_results.model_result(path, bits, kl, depths=(0,))
    changed = replace(model, file=replace(model.file, files=(replace(model.file.files[0], sha256="0" * 64),)))
    return replace(run, models=(*run.models[:number], changed, *run.models[number + 1 :]))


def changes_of(comparison, name):
    (model,) = [each for each in comparison.models if each.name == name]
    return {change.name: change for change in model.changes}


def test_a_run_equals_itself():
    comparison = compare_runs(RUN, RUN)
    assert comparison.differences == ()
    assert all(model.is_same_file for model in comparison.models)
    assert {change.verdict for model in comparison.models for change in model.changes} == {Verdict.EQUAL}


def test_a_clear_change_is_told_and_in_the_right_direction():
    earlier = with_model(RUN, 2, 6.0, 0.0020)
    better = changes_of(compare_runs(earlier, RUN), "E2B-Q6_K")
    worse = changes_of(compare_runs(RUN, earlier), "E2B-Q6_K")
    for name in ("KL mean", "KL 99 %", "same top", "Δp RMS"):
        assert better[name].verdict is Verdict.BETTER, name
        assert worse[name].verdict is Verdict.WORSE, name
    assert better["size"].verdict is Verdict.WORSE
    assert better["KL mean"].change.value == pytest.approx(1e3 * (0.00071 - 0.0020))


def test_a_change_within_the_intervals_is_not_told_apart():
    changes = changes_of(compare_runs(with_model(RUN, 2, 6.57, 0.00072), RUN), "E2B-Q6_K")
    assert changes["KL mean"].verdict is Verdict.SAME


def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says():
    """Means of 40 normal values, both with 95 % intervals: their difference's must cover 0.3 in 95 of 100 runs."""
    rng = random.Random(7)
    factor = NormalDist().inv_cdf(0.975)

    def measured(truth: float) -> Interval:
        values = [rng.gauss(truth, 1) for _ in range(40)]
        half = factor * stdev(values) / len(values) ** 0.5
        return Interval(mean(values), mean(values) - half, mean(values) + half)

    found = [difference_of(measured(1.0), measured(1.3)) for _ in range(1500)]
    assert 0.93 <= mean(each.low <= 0.3 <= each.high for each in found) <= 0.97


def test_intervals_of_other_lengths_to_each_side_are_kept_apart():
    difference = difference_of(Interval(1, 0.7, 1.1), Interval(2, 1.6, 2.9))
    assert difference.value == 1
    assert difference.low == pytest.approx(1 - (0.4**2 + 0.1**2) ** 0.5)
    assert difference.high == pytest.approx(1 + (0.9**2 + 0.3**2) ** 0.5)


@pytest.mark.parametrize(
    ("change", "quality", "divergence"),
    [
        ({"framing": "raw"}, Verdict.INCOMPARABLE, Verdict.INCOMPARABLE),
        ({"n_ctx": 512}, Verdict.INCOMPARABLE, Verdict.INCOMPARABLE),
        ({"n_threads": 2}, Verdict.EQUAL, Verdict.BETTER),
        ({"key_type": "q8_0"}, Verdict.EQUAL, Verdict.BETTER),
    ],
)
def test_conditions_that_differ_are_said_first_and_limit_what_is_compared(change, quality, divergence):
    earlier = replace(with_model(RUN, 2, 6.57, 0.0020), conditions=report_results.conditions(**change))
    comparison = compare_runs(earlier, RUN)
    assert len(comparison.differences) == 1
    changes = changes_of(comparison, "E2B-Q8_0")
    assert changes["perplexity"].verdict is quality
    assert changes_of(comparison, "E2B-Q6_K")["KL mean"].verdict is divergence
    text = comparison_text(comparison, 100)
    assert text.index(" earlier, ") < text.index("model  ")


def test_another_reference_limits_divergence_but_not_perplexity():
    other = replace(RUN.reference.model, files=(replace(RUN.reference.model.files[0], sha256="1" * 64),))
    earlier = replace(RUN, reference=replace(RUN.reference, model=other))
    comparison = compare_runs(earlier, RUN)
    changes = changes_of(comparison, "E2B-Q6_K")
    assert changes["KL mean"].verdict is Verdict.INCOMPARABLE
    assert changes["perplexity"].verdict is Verdict.EQUAL
    assert "divergence cannot be compared" in comparison_text(comparison, 100)


def test_other_texts_limit_all_of_quality():
    texts = (replace(RUN.texts[0], sha256="f" * 64), *RUN.texts[1:])
    changes = changes_of(compare_runs(replace(RUN, texts=texts), RUN), "E2B-Q6_K")
    assert changes["perplexity"].verdict is Verdict.INCOMPARABLE
    assert changes["pp512"].verdict is Verdict.EQUAL


def test_versions_that_differ_are_said():
    conditions = report_results.conditions(versions={"gemma4-quant": "0.1.0", "llama-cpp-python": "0.3.30"})
    (difference,) = compare_runs(replace(RUN, conditions=conditions), RUN).differences
    assert (difference.what, difference.earlier, difference.now) == ("llama-cpp-python", "0.3.30", "0.3.36")


def test_a_renamed_file_is_found_by_its_bytes_and_models_of_one_run_are_named():
    moved = replace(
        RUN.models[1], file=replace(RUN.models[1].file, path=RUN.models[1].file.path.with_name("new.gguf"))
    )
    now = replace(RUN, models=(RUN.models[0], moved, RUN.models[2]))
    comparison = compare_runs(RUN, now)
    assert {model.name for model in comparison.models} == {"E2B-BF16", "new", "E2B-Q6_K"}
    assert comparison.gone == ("E2B-Q5_K_M.gguf",)
    assert compare_runs(now, RUN).added == ("E2B-Q5_K_M.gguf",)


def test_without_any_interval_nothing_is_claimed():
    score = RUN.models[2].score
    bare = replace(score, overall=replace(score.overall, perplexity=Estimate(9.0), divergence=None))
    other = replace(score, overall=replace(score.overall, perplexity=Estimate(9.5), divergence=None))
    runs = [replace(RUN, models=(replace(RUN.models[2], score=each),)) for each in (bare, other)]
    assert changes_of(compare_runs(*runs), "E2B-Q6_K")["perplexity"].verdict is Verdict.UNKNOWN


def test_speeds_are_told_apart_by_the_spread_of_repetitions():
    slower = with_model(RUN, 2, 9.5, 0.00071)
    changes = changes_of(compare_runs(slower, RUN), "E2B-Q6_K")
    assert changes["tg128"].verdict is Verdict.BETTER
    assert changes["pp512"].change.low < changes["pp512"].change.value < changes["pp512"].change.high


def test_speeds_that_drifted_are_not_judged():
    model = RUN.models[2]
    speeds = tuple(replace(speed, has_drifted=True) for speed in model.speeds.speeds)
    drifting = replace(model, speeds=replace(model.speeds, speeds=speeds))
    changes = changes_of(
        compare_runs(replace(with_model(RUN, 2, 9.5, 0.00071)), replace(RUN, models=(drifting,))), "E2B-Q6_K"
    )
    assert changes["tg128"].verdict is Verdict.UNSTEADY


def test_a_comparison_is_in_page_and_markdown_and_refused_elsewhere():
    comparison = compare_runs(with_model(RUN, 2, 6.0, 0.0020), RUN)
    page = html_report(RUN, comparison)
    assert page.index("Compared with the run of") < page.index("Divergence from the reference")
    assert "better" in page
    assert formatted(RUN, SpeedFormat.MD, comparison).startswith("**Changes since")
    for output_format in (SpeedFormat.CSV, SpeedFormat.JSONL, SpeedFormat.SQL, SpeedFormat.JSON):
        with pytest.raises(InputError, match="cannot be written as"):
            formatted(RUN, output_format, comparison)


def test_hostile_runs_are_compared_without_harm():
    hostile = report_results.hostile_result()
    comparison = compare_runs(RUN, hostile)
    page = html_report(hostile, comparison)
    assert "<script" not in page
    markdown = comparison_markdown(comparison)
    assert "<" not in markdown
    assert [
        letter for letter in comparison_text(comparison, 100) if not letter.isprintable() and letter != "\n"
    ] == []


def test_many_changes_are_cut_to_those_that_are_told_apart():
    many = report_results.bench_result(13, depths=(0,))
    text = comparison_text(compare_runs(with_model(many, 5, 4.9, 0.02), many), 100)
    assert "E2B-Q4_K_M" in text
    assert "equal" not in text.split("told apart")[0]
