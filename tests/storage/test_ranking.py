"""Which checkpoints are better, and which go."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrain._storage.ranking import Registered, best, lookup, ranked, superfluous

MISSING = object()


def registered(scores):
    return [
        Registered(f"checkpoint_{n:06d}", n, {} if score is MISSING else {"score": score})
        for n, score in enumerate(scores)
    ]


def order_of(scores, order="max", attribute="score"):
    return [one.sequence for one in ranked(registered(scores), attribute, order)]


def kept_over_time(scores, order, num_to_keep, attribute="score"):
    """Report one checkpoint after the other and drop what is superfluous after each."""
    there = []
    for one in registered(scores):
        there.append(one)
        in_order = ranked(there, attribute, order)
        gone = superfluous(in_order, num_to_keep)
        there = [kept for kept in there if kept not in gone]
    return [one.sequence for one in there]


# ------------------------------------------------------------------ better and worse
@pytest.mark.parametrize(
    ("scores", "order", "expected"),
    [
        ([1, 3, 2], "max", [0, 2, 1]),
        ([1, 3, 2], "min", [1, 2, 0]),
        ([5, 5, 5], "max", [0, 1, 2]),
        ([5, 5, 5], "min", [0, 1, 2]),
        ([1, MISSING, 2], "max", [1, 0, 2]),
        ([1, MISSING, 2], "min", [1, 2, 0]),
        ([1, math.nan, 2], "max", [1, 0, 2]),
        ([1, math.nan, 2], "min", [1, 2, 0]),
        ([-math.inf, math.nan], "max", [1, 0]),
        ([math.inf, math.nan], "min", [1, 0]),
        ([math.inf, 1, -math.inf], "max", [2, 1, 0]),
        ([math.inf, 1, -math.inf], "min", [0, 1, 2]),
        ([math.nan, MISSING], "max", [1, 0]),
        ([math.nan, MISSING], "min", [1, 0]),
        ([1, "high", 2], "max", [1, 0, 2]),
        ([1, "high", 2], "min", [1, 2, 0]),
        ([0, True, 2], "max", [1, 0, 2]),
        ([0, False, -2], "min", [1, 0, 2]),
        ([1, None, 2], "max", [1, 0, 2]),
        ([1, [9], {"deep": 9}], "max", [1, 2, 0]),
        ([0, -0.0], "max", [0, 1]),
        ([1, 1.5, 2], "max", [0, 1, 2]),
        ([2**70, 2**71], "max", [0, 1]),
    ],
)
def test_checkpoints_are_ranked_from_the_worst_to_the_best(scores, order, expected):
    assert order_of(scores, order) == expected


@pytest.mark.parametrize("order", ["max", "min"])
def test_without_an_attribute_the_newer_is_the_better(order):
    assert order_of([3, 1, 2], order, attribute=None) == [0, 1, 2]


def test_the_order_in_which_they_are_given_does_not_matter():
    shuffled = list(reversed(registered([5, 5, 4])))
    assert [one.sequence for one in ranked(shuffled, "score", "max")] == [2, 0, 1]


@pytest.mark.parametrize(
    ("report", "attribute", "expected"),
    [
        ({"loss": 1}, "loss", 1),
        ({"val": {"acc": 2}}, "val/acc", 2),
        ({"a": {"b": {"c": 3}}}, "a/b/c", 3),
        ({"val/acc": 4, "val": {"acc": 5}}, "val/acc", 4),
        ({"val": {"acc": 2}}, "val/loss", None),
        ({"val": 2}, "val/acc", None),
        ({"val": [1]}, "val/0", None),
        ({}, "loss", None),
        ({"loss": 0}, "loss", 0),
    ],
)
def test_a_metric_is_found_by_its_name_or_its_path(report, attribute, expected):
    assert lookup(report, attribute) == expected


def test_a_nested_metric_ranks():
    reports = [{"val": {"acc": accuracy}} for accuracy in (2, 3, 1)]
    checkpoints = [Registered(str(n), n, report) for n, report in enumerate(reports)]
    assert [one.sequence for one in ranked(checkpoints, "val/acc", "max")] == [2, 0, 1]


# ------------------------------------------------------------------ what stays
@pytest.mark.parametrize(
    ("scores", "order", "num_to_keep", "expected"),
    [
        ([10, 9, math.nan, 7], "min", 2, [1, 3]),
        ([1, 3, 2], "max", 2, [1, 2]),
        ([3, 2, 1], "max", 1, [0, 2]),
        ([1, 2, 3], "max", 1, [2]),
        ([5, 5, 5], "max", 1, [2]),
        ([9, MISSING, 8], "min", 1, [2]),
        ([9, MISSING, 8], "min", 2, [0, 2]),
        ([9, MISSING], "min", 1, [0, 1]),
        ([MISSING, 9], "min", 1, [1]),
        ([1, 2, 3], "max", None, [0, 1, 2]),
        ([3, 2, 1, 0], "max", 2, [0, 1, 3]),
        ([], "max", 1, []),
    ],
)
def test_the_best_stay_and_the_newest_always(scores, order, num_to_keep, expected):
    assert kept_over_time(scores, order, num_to_keep) == expected


def test_without_an_attribute_the_newest_stay():
    assert kept_over_time([9, 1, 5, 2], "max", 2, attribute=None) == [2, 3]


@pytest.mark.parametrize(
    ("num_to_keep", "expected"), [(None, [0, 2, 1]), (1, [1]), (2, [2, 1]), (9, [0, 2, 1])]
)
def test_the_best_of_all_comes_last(num_to_keep, expected):
    in_order = ranked(registered([1, 3, 2]), "score", "max")
    assert [one.sequence for one in best(in_order, num_to_keep)] == expected


def test_the_newest_is_among_the_best_only_if_it_qualifies():
    in_order = ranked(registered([3, 2]), "score", "max")
    assert [one.sequence for one in best(in_order, 1)] == [0]


# ------------------------------------------------------------------ whatever is reported
scores = st.lists(
    st.one_of(
        st.floats(),
        st.integers(min_value=-3, max_value=3),
        st.just(MISSING),
        st.booleans(),
        st.text(max_size=2),
        st.none(),
    ),
    max_size=12,
)
orders = st.sampled_from(["max", "min"])
limits = st.one_of(st.none(), st.integers(min_value=1, max_value=5))


def class_of(score):
    if isinstance(score, bool) or not isinstance(score, int | float):
        return 0
    return 1 if math.isnan(score) else 2


@given(scores, orders)
def test_no_score_is_worse_than_nan_and_nan_is_worse_than_any_number(scores, order):
    sequence = order_of(scores, order)
    classes = [class_of(scores[n]) for n in sequence]
    assert classes == sorted(classes)
    numbers = [scores[n] for n in sequence if class_of(scores[n]) == 2]
    assert numbers == sorted(numbers, reverse=order == "min")


@given(scores, orders)
def test_of_equals_the_newer_is_the_better(scores, order):
    sequence = order_of(scores, order)
    assert sorted(sequence) == list(range(len(scores)))
    for worse, better in itertools.pairwise(sequence):
        same = class_of(scores[worse]) == class_of(scores[better])
        equal = class_of(scores[worse]) < 2 or scores[worse] == scores[better]
        assert not (same and equal) or worse < better


@given(scores, orders, limits)
def test_what_stays_is_the_best_and_the_newest_and_nothing_else(scores, order, num_to_keep):
    in_order = ranked(registered(scores), "score", order)
    gone = superfluous(in_order, num_to_keep)
    stay = [one.sequence for one in in_order if one not in gone]
    newest = {len(scores) - 1} if scores else set()
    assert set(stay) == {one.sequence for one in best(in_order, num_to_keep)} | newest


@given(scores, orders, limits)
def test_over_time_the_best_that_was_ever_reported_is_never_lost(scores, order, num_to_keep):
    kept = kept_over_time(scores, order, num_to_keep)
    assert kept == sorted(kept)
    if scores:
        assert kept[-1] == len(scores) - 1
        assert order_of(scores, order)[-1] in kept
        assert num_to_keep is None or len(kept) <= num_to_keep + 1
