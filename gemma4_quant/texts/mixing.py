"""Putting unlike texts next to each other, so that any part of a collection is as varied as the whole."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def interleaved(groups: Iterable[Sequence[T]]) -> tuple[T, ...]:
    """Merge groups so that each is spread evenly over the result; within a group the order stays.

    After any n items each group has given its share of n, to within one item.
    """
    placed = [
        ((index + 0.5) / len(group), number, index, item)
        for number, group in enumerate(groups)
        for index, item in enumerate(group)
    ]
    return tuple(item for _, _, _, item in sorted(placed, key=lambda place: place[:3]))
