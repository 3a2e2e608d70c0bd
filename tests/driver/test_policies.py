"""Whether a failed attempt is followed by another one, and with how many workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrain._driver.policies import NOTHING, Budget, Retry, Spent
from minitrain.exceptions import (
    ControllerError,
    PreemptionError,
    TrainingFailedError,
    WorkerDiedError,
    WorkerFailure,
    WorkerGroupError,
)

CRASH = WorkerGroupError([WorkerFailure(0, "host", 1, WorkerDiedError(-9), "", "/0.log")])
PREEMPTED = PreemptionError(None)


def spend(budget, errors, num_workers=2, fits=2):
    """Return what follows a sequence of failures: the decisions, up to the first refusal."""
    spent, decisions = NOTHING, []
    for error in errors:
        decision = budget.decide(spent, num_workers, error, fits)
        decisions.append(decision)
        if decision == "raise":
            break
        spent, num_workers = decision.spent, decision.num_workers
    return decisions


@pytest.mark.parametrize("limit", [0, 1, 2, 7])
def test_a_limit_of_n_gives_exactly_n_retries_and_then_raises(limit):
    decisions = spend(Budget(limit, 0, 1), [CRASH] * (limit + 3))
    assert decisions == [Retry(2, Spent(count + 1)) for count in range(limit)] + ["raise"]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_preemptions_have_a_budget_of_their_own(limit):
    decisions = spend(Budget(0, limit, 1), [PREEMPTED] * (limit + 3))
    assert decisions == [Retry(2, Spent(0, count + 1)) for count in range(limit)] + ["raise"]


def test_each_budget_counts_its_own_kind_only():
    errors = [CRASH, PREEMPTED, PREEMPTED, CRASH, PREEMPTED, CRASH]
    decisions = spend(Budget(2, 3, 1), errors)
    assert decisions[-2:] == [Retry(2, Spent(2, 3)), "raise"]
    assert len(decisions) == len(errors)


@given(st.integers(min_value=0, max_value=10**9), st.sampled_from([CRASH, PREEMPTED]))
def test_a_limit_of_minus_one_never_ends(count, error):
    assert Budget(-1, -1, 1).decide(Spent(count, count), 3, error, 3) != "raise"


@pytest.mark.parametrize("limit", [-1, 0, 5])
@pytest.mark.parametrize("error", [ControllerError("disk full"), TrainingFailedError("else")])
def test_only_failures_of_workers_are_retried(limit, error):
    assert Budget(limit, -1, 1).decide(NOTHING, 2, error, 2) == "raise"


@given(num_workers=st.integers(min_value=1, max_value=64))
def test_the_next_attempt_has_as_many_workers(num_workers):
    decision = Budget(1, 0, num_workers).decide(NOTHING, num_workers, CRASH, num_workers)
    assert decision == Retry(num_workers, Spent(1))


@pytest.mark.parametrize("error", [CRASH, PREEMPTED])
def test_with_room_for_fewer_than_the_least_there_is_no_next_attempt(error):
    assert Budget(-1, -1, 3).decide(NOTHING, 4, error, 2) == "raise"


@given(
    failures=st.integers(min_value=0, max_value=5),
    least=st.integers(min_value=1, max_value=4),
    lost=st.integers(min_value=1, max_value=4),
)
def test_a_failure_that_took_resources_away_is_free(failures, least, lost):
    spent = Spent(failures)
    decision = Budget(0, 0, least).decide(spent, least + lost, CRASH, least)
    assert decision == Retry(least, spent)
