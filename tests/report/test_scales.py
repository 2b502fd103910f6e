"""Scales of plots: round ticks in the axis, monotone, and a length whatever the values are."""

from itertools import pairwise
from math import isfinite, log10

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.report.plots.scales import Extent, linear_scale, log_scale, power_text

EXTENT = Extent(50, 450)
VALUES = st.lists(st.floats(-1e12, 1e12), max_size=8)
POSITIVE = st.lists(st.floats(1e-12, 1e12), max_size=8)


@given(values=VALUES, from_zero=st.booleans())
def test_a_linear_scale_orders_its_values_within_the_axis(values, from_zero):
    scale = linear_scale(values, EXTENT, from_zero=from_zero)
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(EXTENT.start <= place <= EXTENT.stop for place in places)
    assert scale.low < scale.high


@given(values=POSITIVE)
def test_a_logarithmic_scale_orders_its_values_within_the_axis(values):
    scale = log_scale(values, EXTENT)
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(EXTENT.start <= place <= EXTENT.stop for place in places)


@given(values=POSITIVE)
def test_equal_factors_are_equal_distances_on_a_logarithmic_scale(values):
    scale = log_scale(values, EXTENT)
    middle = (scale.low * scale.high) ** 0.5
    assert scale(middle) == pytest.approx(250, abs=1e-6)


@given(values=VALUES)
def test_linear_ticks_are_equally_spaced_and_neither_few_nor_many(values):
    ticks = linear_scale(values, EXTENT).ticks
    steps = [b.value - a.value for a, b in pairwise(ticks)]
    assert 2 <= len(ticks) <= 9
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)
    assert len({tick.label for tick in ticks}) == len(ticks)
    mantissa = steps[0] / 10 ** round(log10(steps[0]) - 0.35)
    assert any(mantissa == pytest.approx(round_one, rel=1e-6) for round_one in (0.5, 1, 2, 5))


@given(values=POSITIVE)
def test_logarithmic_ticks_have_one_digit_and_are_neither_few_nor_many(values):
    ticks = log_scale(values, EXTENT).ticks
    assert 1 <= len(ticks) <= 8
    for tick in ticks:
        assert f"{tick.value:.6e}"[1:8] == ".000000"


@pytest.mark.parametrize("values", [[], [0.0], [3.5], [float("nan")], [float("inf"), 2.0], [-1.0, -1.0]])
def test_few_or_unusable_values_still_give_an_axis(values):
    for scale in (
        linear_scale(values, EXTENT),
        linear_scale(values, EXTENT, from_zero=True),
        log_scale(values, EXTENT),
    ):
        assert scale.ticks
        assert isfinite(scale(1.0))
        assert scale.low < scale.high


def test_an_upward_axis_puts_larger_values_higher():
    scale = linear_scale([0, 10], Extent(400, 20))
    assert scale(0) > scale(10)


def test_what_is_not_positive_lies_at_the_low_end_of_a_logarithmic_scale():
    scale = log_scale([0.0, 0.001, 1.0], EXTENT)
    assert scale(0.0) == scale(-1.0) == EXTENT.start


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (0.002, "0.002"), (5e-4, "5·10⁻⁴"), (1e-12, "10⁻¹²"), (50_000, "50,000"), (2e5, "2·10⁵")],
)
def test_powers_are_written_short(value, text):
    assert power_text(value) == text
