"""The Pareto front: files that no other file beats in both size and divergence."""

from collections.abc import Sequence


def pareto_front(sizes: Sequence[float], losses: Sequence[float]) -> tuple[int, ...]:
    """Return the indices of points on the front, from the smallest size to the largest.

    A point is on it unless another is at most as large and at most as lossy, and better in one of the two. Of
    equal points the first is taken.
    """
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], losses[i], i))
    front: list[int] = []
    for i in order:
        if not front or losses[i] < losses[front[-1]]:
            front.append(i)
    return tuple(front)
