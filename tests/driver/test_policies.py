"""Whether a failed attempt is followed by another one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrain._driver.policies import MaxFailures, Retry
from minitrain.exceptions import (
    ControllerError,
    TrainingFailedError,
    WorkerDiedError,
    WorkerFailure,
    WorkerGroupError,
)

CRASH = WorkerGroupError([WorkerFailure(0, "host", 1, WorkerDiedError(-9), "", "/0.log")])


@pytest.mark.parametrize("limit", [0, 1, 2, 7])
def test_a_limit_of_n_gives_exactly_n_retries_and_then_raises(limit):
    policy = MaxFailures(limit, num_workers=2)
    decisions = [policy.decide(attempt, CRASH) for attempt in range(limit + 1)]
    assert decisions == [Retry(2)] * limit + ["raise"]


@given(st.integers(min_value=0, max_value=10**9))
def test_a_limit_of_minus_one_never_ends(attempt):
    assert MaxFailures(-1, num_workers=3).decide(attempt, CRASH) == Retry(3)


@pytest.mark.parametrize("limit", [-1, 0, 5])
@pytest.mark.parametrize("error", [ControllerError("disk full"), TrainingFailedError("else")])
def test_only_failures_of_workers_are_retried(limit, error):
    assert MaxFailures(limit, num_workers=2).decide(0, error) == "raise"


@given(num_workers=st.integers(min_value=1, max_value=64))
def test_the_next_attempt_has_as_many_workers(num_workers):
    assert MaxFailures(1, num_workers).decide(0, CRASH) == Retry(num_workers)
