"""Mixing groups: nothing lost, order kept, every part as mixed as the whole."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.texts.mixing import interleaved

SIZES = st.lists(st.integers(0, 30), max_size=6)


@given(SIZES)
def test_every_item_comes_once_and_in_its_groups_order(sizes: list[int]) -> None:
    groups = [[(number, i) for i in range(size)] for number, size in enumerate(sizes)]
    mixed = interleaved(groups)
    for number, group in enumerate(groups):
        assert [item for item in mixed if item[0] == number] == group
    assert len(mixed) == sum(sizes)


@given(SIZES)
def test_each_beginning_holds_each_groups_share(sizes: list[int]) -> None:
    mixed = interleaved([[number] * size for number, size in enumerate(sizes)])
    counts: Counter[int] = Counter()
    for n, number in enumerate(mixed, 1):
        counts[number] += 1
        for other, size in enumerate(sizes):
            # Each of the groups is rounded by at most a half, so one by at most half of their number.
            assert abs(counts[other] - n * size / len(mixed)) <= max(1, len(sizes) / 2)


def test_items_need_no_order() -> None:
    assert interleaved([[{}, []], [None]]) == ({}, None, [])
