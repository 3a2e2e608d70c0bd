"""When a stop condition is met."""

from __future__ import annotations

import math

import pytest

from minitrain._driver.traffic import should_stop

ROW = {"loss": 0.5, "epoch": 3, "val": {"acc": 0.9}, "a/b": 2, "nan": math.nan}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (None, False),
        ({}, False),
        ({"epoch": 2}, True),
        ({"epoch": 3}, True),
        ({"epoch": 4}, False),
        ({"epoch": 3.5}, False),
        ({"loss": 0.5}, True),
        ({"val/acc": 0.9}, True),
        ({"val/acc": 0.95}, False),
        ({"a/b": 2}, True),
        ({"nan": 0}, False),
        ({"epoch": 99, "loss": 0.1}, True),
        ({"epoch": 99, "loss": 0.9}, False),
    ],
    ids=str,
)
def test_a_dict_is_met_when_any_reported_value_is_at_least_its_threshold(condition, expected):
    assert should_stop(condition, "run", ROW) is expected


@pytest.mark.parametrize(("answer", "expected"), [(True, True), (False, False), (1, True), ("", 0)])
def test_a_function_is_asked_with_the_trials_id_and_the_row(answer, expected):
    asked = []

    def condition(trial_id, row):
        asked.append((trial_id, row))
        return answer

    assert should_stop(condition, "run", ROW) == expected
    assert asked == [("run", ROW)]


@pytest.mark.parametrize("name", ["accuracy", "val/loss", "loss/deep"])
def test_a_metric_that_was_not_reported_is_named_with_those_that_were(name):
    with pytest.raises(KeyError) as caught:
        should_stop({name: 1}, "run", ROW)
    assert repr(name) in str(caught.value)
    assert "epoch" in str(caught.value)
