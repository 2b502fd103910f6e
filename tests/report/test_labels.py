"""Names of marks never overlap, however the marks lie; and the Pareto front is what its definition says."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from gemma4_quant.report.plots.front import pareto_front
from gemma4_quant.report.plots.labels import Box, Mark, fitted, place_labels, text_width
from gemma4_quant.report.plots.marks import Point

BOUNDS = Box(0, 0, 800, 400)
POINTS = st.lists(st.tuples(st.floats(0, 800), st.floats(0, 400)), max_size=60)


def boxes_of(marks, obstacles=()):
    return [placed.box for placed in place_labels(marks, BOUNDS, obstacles)]


@given(places=POINTS)
def test_names_overlap_neither_each_other_nor_marks_nor_obstacles_and_stay_inside(places):
    marks = [Mark(Point(x, y), f"model-Q{i}_K_M") for i, (x, y) in enumerate(places)]
    obstacle = Box(300, 100, 420, 140)
    boxes = boxes_of(marks, [obstacle])
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert not any(box.overlaps(obstacle) for box in boxes)
    assert all(BOUNDS.contains(box) for box in boxes)
    for box in boxes:
        assert not any(box.left < mark.at.x < box.right and box.top < mark.at.y < box.bottom for mark in marks)


def test_a_name_alone_stands_beside_its_mark():
    (placed,) = place_labels([Mark(Point(100, 100), "Q4_K_M")], BOUNDS)
    assert placed.anchor == "start"
    assert placed.leader is None
    assert placed.box.left == 108


def test_a_name_avoids_a_line_when_it_can_and_crosses_it_when_it_must():
    mark = Mark(Point(100, 100), "Q4_K_M")
    to_the_right = Box(100, 99, 800, 101)
    (placed,) = place_labels([mark], BOUNDS, lines=[to_the_right])
    assert not placed.box.overlaps(to_the_right)
    assert len(place_labels([mark], BOUNDS, lines=[Box(-1000, -1000, 2000, 2000)])) == 1


def test_what_has_no_room_is_left_out_and_earlier_marks_win():
    marks = [Mark(Point(100, 100), f"name-{i}") for i in range(100)]
    names = [placed.name for placed in place_labels(marks, BOUNDS)]
    assert names[0] == "name-0"
    assert 0 < len(names) < 100


@given(text=st.text(max_size=300), width=st.floats(20, 400))
def test_a_cut_name_fits_and_keeps_its_end(text, width):
    cut = fitted(text, width)
    assert text_width(cut) <= width or len(cut) <= 1
    if cut != text and len(cut) > 6:
        assert text.endswith(cut[cut.index("…") + 1 :])


POINT_LISTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20)


@given(points=POINT_LISTS)
def test_the_front_holds_exactly_what_nothing_beats(points):
    sizes, losses = [p[0] for p in points], [float(p[1]) for p in points]
    front = pareto_front(sizes, losses)
    beaten = {i for i, p in enumerate(points) if any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)}
    assert {points[i] for i in front} == {p for i, p in enumerate(points) if i not in beaten}
    assert len({points[i] for i in front}) == len(front)
    assert [sizes[i] for i in front] == sorted(sizes[i] for i in front)
