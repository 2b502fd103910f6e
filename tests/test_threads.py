"""Work on many items at once."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_quant.threads import in_order


@settings(deadline=None)
@given(items=st.lists(st.integers(), max_size=40), n_threads=st.integers(1, 4))
def test_results_come_in_order(items: list[int], n_threads: int) -> None:
    assert list(in_order(lambda item: item * 2, items, n_threads)) == [(item, item * 2) for item in items]


def test_few_results_wait() -> None:
    begun, taken = [], 0

    def items() -> object:
        for number in range(50):
            assert number - taken <= 2 * 2 + 1
            yield number

    for _ in in_order(begun.append, items(), 2):  # type: ignore[arg-type]
        taken += 1
    assert taken == 50


def test_a_failure_reaches_the_caller_and_ends_the_work() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three"):
        list(in_order(work, range(1000), 2))
    assert len(begun) < 20
    assert threading.active_count() == 1 or all("ThreadPool" not in thread.name for thread in threading.enumerate())
