"""Points: the published text, its reading, and scores against brute force."""

import itertools
import math

import numpy as np
import pytest

from plait.errors import BadSample
from plait.families.molmo import points


def test_write_one_point():
    assert points.write([(12.34, 56.0)], "cat") == '<point x="12.3" y="56.0" alt="cat">cat</point>'


def test_write_several_points_from_left_to_right():
    expected = '<points x1="5.0" y1="9.0" x2="50.0" y2="10.0" x3="50.0" y3="20.0" alt="red cats">red cats</points>'
    assert points.write([(50, 20), (5, 9), (50, 10)], "red cats") == expected


def test_write_none_and_counts():
    assert points.write([], "cats") == "There are none."
    assert points.write_count([], "cats") == "There are none."
    assert points.write_count([(1, 2)], "cat") == 'Counting the <point x="1.0" y="2.0" alt="cat">cat</point> shows a total of 1.'


@pytest.mark.parametrize("point", [(100.1, 5), (-0.1, 5), (5, math.nan)])
def test_write_refuses_a_point_outside_the_image(point):
    with pytest.raises(BadSample, match="is outside the image: x and y are percentages from 0 to 100"):
        points.write([point], "cat")


def test_read_gives_back_what_was_written():
    random = np.random.default_rng(0)
    for count in (1, 2, 9):
        written = [tuple(map(float, pair)) for pair in random.uniform(0, 100, (count, 2)).round(1)]
        assert points.read(f"Here: {points.write(written, 'x1=3 things')} they are.") == sorted(written)


@pytest.mark.parametrize("text", ['<point x="12"', '<point x="120" y="5">', "x=5 y=5", "<point y1='3' x2='4'>"])
def test_read_leaves_out_what_is_no_point(text):
    assert points.read(text) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (points.write_count([(1, 2), (3, 4)], "cats"), 2),
        ('<points x1="1" y1="2" x2="3" y2="4" alt="cats">cats</points>', 2),
        ("There are three cats.", 3),
        ("12", 12),
        (points.NONE, 0),
        ("one or two", None),
        ("many", None),
    ],
)
def test_read_count_of_what_models_say(text, count):
    assert points.read_count(text) == count


def test_assign_is_as_cheap_as_the_best_permutation():
    random = np.random.default_rng(1)
    for _ in range(200):
        rows, columns = random.integers(1, 6, 2)
        cost = random.random((rows, columns))
        pairs = points.assign(cost.tolist())
        wide = cost if rows <= columns else cost.T
        best = min(sum(wide[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(wide.shape[1]), len(wide)))
        assert sum(cost[i, j] for i, j in pairs) == pytest.approx(best)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == min(rows, columns)


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ([], [], (1, 1, 1)),
        ([(1, 1)], [], (0, 0, 0)),
        ([], [(1, 1)], (0, 0, 0)),
        ([(10, 10), (50, 50)], [(11, 10)], (0.5, 1, 2 / 3)),
        ([(10, 10), (10, 10)], [(10, 10), (90, 90)], (0.5, 0.5, 0.5)),
    ],
)
def test_pointing_score_matches_one_to_one(predicted, gold, expected):
    figures = points.pointing_score(predicted, gold, lambda i, point: math.dist(gold[i], point) < 5)
    assert (figures["precision"], figures["recall"], figures["f1"]) == pytest.approx(expected)
