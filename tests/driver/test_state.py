"""The run's state machine, without a process in sight."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain._driver.policies import Budget, Spent
from minitrain._driver.state import (
    AttemptFailed,
    Failed,
    Finished,
    Interrupted,
    InterruptRequested,
    ResizePossible,
    Running,
    Starting,
    StartWorkers,
    Stopping,
    StopWorkers,
    WorkersGone,
    WorkersReady,
    WorkersReturned,
    step,
)
from minitrain.exceptions import (
    ControllerError,
    PreemptionError,
    WorkerDiedError,
    WorkerFailure,
    WorkerGroupError,
)

CRASH = WorkerGroupError([WorkerFailure(1, "host-a", 42, WorkerDiedError(-9), "", "/logs/1.log")])
LATER_CRASH = WorkerGroupError(
    [WorkerFailure(0, "host-a", 43, WorkerDiedError(-15), "", "/logs/0.log")]
)
BROKEN = ControllerError("a callback raised")
PREEMPTED = PreemptionError(None)
ONE_RETRY = Budget(max_failures=1, max_preemptions=0, min_workers=1)
ONCE = Spent(failures=1)
TERMINAL = (Finished(), Failed(CRASH), Interrupted())
TERMINAL_KINDS = (Finished, Failed, Interrupted)


def a_ready(attempt):
    return WorkersReady(attempt, 2)


EVENTS = (a_ready, WorkersReturned, InterruptRequested, WorkersGone)


@pytest.mark.parametrize(
    ("state", "event", "expected", "action"),
    [
        pytest.param(Starting(0, 2), WorkersReady(0, 2), Running(0, 2), None, id="ready"),
        pytest.param(
            Starting(0, 4), WorkersReady(0, 3), Running(0, 3), None, id="ready with fewer"
        ),
        pytest.param(
            Starting(0, 2),
            AttemptFailed(0, CRASH, 2),
            Stopping(0, Starting(1, 2, ONCE)),
            StopWorkers(0, done=False),
            id="a start that fails is retried",
        ),
        pytest.param(
            Running(0, 2),
            AttemptFailed(0, CRASH, 2),
            Stopping(0, Starting(1, 2, ONCE)),
            StopWorkers(0, done=False),
            id="a training that fails is retried",
        ),
        pytest.param(
            Running(1, 2, ONCE),
            AttemptFailed(1, CRASH, 2),
            Stopping(1, Failed(CRASH)),
            StopWorkers(1, done=False),
            id="not more often than allowed",
        ),
        pytest.param(
            Running(0, 4, ONCE),
            AttemptFailed(0, CRASH, 3),
            Stopping(0, Starting(1, 3, ONCE)),
            StopWorkers(0, done=False),
            id="a failure that took a GPU away costs nothing",
        ),
        pytest.param(
            Running(0, 2),
            AttemptFailed(0, CRASH, 2, final=True),
            Stopping(0, Failed(CRASH)),
            StopWorkers(0, done=False),
            id="where the driver has to go there is no next attempt",
        ),
        pytest.param(
            Running(3, 2, ONCE),
            ResizePossible(3, 5),
            Stopping(3, Starting(4, 5, ONCE)),
            StopWorkers(3, done=False),
            id="growing costs nothing",
        ),
        pytest.param(
            Stopping(0, Starting(1, 2)),
            AttemptFailed(0, CRASH, 2, final=True),
            Stopping(0, Failed(CRASH)),
            None,
            id="SIGTERM between two attempts",
        ),
        pytest.param(
            Running(0, 2),
            WorkersReturned(0),
            Stopping(0, Finished()),
            StopWorkers(0, done=True),
            id="workers that are done may leave by themselves",
        ),
        pytest.param(
            Starting(0, 2),
            InterruptRequested(0),
            Stopping(0, Interrupted()),
            StopWorkers(0, done=False),
            id="interrupted while starting",
        ),
        pytest.param(
            Running(0, 2),
            InterruptRequested(0),
            Stopping(0, Interrupted()),
            StopWorkers(0, done=False),
            id="interrupted while training",
        ),
        pytest.param(
            Stopping(0, Starting(1, 2)),
            WorkersGone(0),
            Starting(1, 2),
            StartWorkers(1, 2),
            id="the next attempt starts when the last worker is gone",
        ),
        pytest.param(Stopping(0, Finished()), WorkersGone(0), Finished(), None, id="finished"),
        pytest.param(Stopping(0, Failed(CRASH)), WorkersGone(0), Failed(CRASH), None, id="failed"),
        pytest.param(
            Stopping(0, Interrupted()), WorkersGone(0), Interrupted(), None, id="interrupted"
        ),
    ],
)
def test_every_transition_of_the_picture(state, event, expected, action):
    assert step(state, event, ONE_RETRY) == (expected, action)


@pytest.mark.parametrize("state", [Starting(0, 2), Running(0, 2)])
def test_failures_of_the_driver_are_never_retried(state):
    assert step(state, AttemptFailed(0, BROKEN, 2), ONE_RETRY)[0] == Stopping(0, Failed(BROKEN))


@pytest.mark.parametrize("then", [Starting(2, 2), Finished(), Failed(CRASH), Interrupted()])
@pytest.mark.parametrize("event", [AttemptFailed(1, LATER_CRASH, 2), WorkersReturned(1)])
def test_what_workers_do_during_teardown_does_not_hide_the_cause(then, event):
    assert step(Stopping(1, then), event, ONE_RETRY) == (Stopping(1, then), None)


@pytest.mark.parametrize("then", [Starting(2, 2), Finished(), Failed(CRASH), Interrupted()])
def test_an_interrupt_during_teardown_ends_the_run_and_stops_nothing_twice(then):
    expected = Stopping(1, Interrupted()), None
    assert step(Stopping(1, then), InterruptRequested(1), ONE_RETRY) == expected


@pytest.mark.parametrize(
    "state", [Starting(1, 2), Running(1, 2), Stopping(1, Finished()), Stopping(1, Starting(2, 2))]
)
def test_news_of_an_earlier_attempt_changes_nothing(state):
    for event in [*(kind(0) for kind in EVENTS), AttemptFailed(0, CRASH, 2)]:
        assert step(state, event, ONE_RETRY) == (state, None)


@pytest.mark.parametrize("state", TERMINAL, ids=lambda state: type(state).__name__)
def test_what_is_over_stays_over(state):
    for event in [*(kind(0) for kind in EVENTS), AttemptFailed(0, BROKEN, 2)]:
        assert step(state, event, ONE_RETRY) == (state, None)


IMPOSSIBLE = {
    (Starting, WorkersReturned),
    (Starting, WorkersGone),
    (Running, WorkersReady),
    (Running, WorkersGone),
    (Starting, ResizePossible),
}


@pytest.mark.parametrize(("kind", "event"), sorted(IMPOSSIBLE, key=str))
def test_the_impossible_is_loud(kind, event):
    state = Starting(0, 2) if kind is Starting else Running(0, 2)
    with pytest.raises(AssertionError, match="cannot happen"):
        step(state, event(0, 3) if event in {ResizePossible, WorkersReady} else event(0), ONE_RETRY)


attempts = st.integers(min_value=0, max_value=5)
any_event = st.one_of(
    st.builds(a_ready, attempts),
    st.builds(WorkersReturned, attempts),
    st.builds(
        AttemptFailed,
        attempts,
        st.sampled_from([CRASH, LATER_CRASH, BROKEN, PREEMPTED]),
        st.integers(min_value=0, max_value=8),
        st.booleans(),
    ),
    st.builds(ResizePossible, attempts, st.integers(min_value=1, max_value=8)),
    st.builds(InterruptRequested, attempts),
    st.builds(WorkersGone, attempts),
)


def is_possible(state, event):
    return (type(state), type(event)) not in IMPOSSIBLE or event.attempt != state.attempt


def check_step(before, event, state, action, budget):
    """Check one step by itself."""
    if isinstance(before, TERMINAL_KINDS):
        assert (state, action) == (before, None)
        return
    if not isinstance(state, TERMINAL_KINDS):
        assert before.attempt <= state.attempt <= before.attempt + 1
    match action:
        case None:
            assert isinstance(before, Stopping) or not isinstance(state, Stopping)
        case StartWorkers():
            assert (state.attempt, state.num_workers) == (action.attempt, action.num_workers)
        case StopWorkers():
            assert isinstance(state, Stopping)
            assert action.attempt == before.attempt
            assert action.done == isinstance(event, WorkersReturned)
            check_next(before, event, state.then, budget)
        case _:
            pytest.fail(f"{action} is no action")


def check_next(before, event, then, budget):
    """Check what is to follow an attempt."""
    if not isinstance(then, Starting):
        return
    if isinstance(event, ResizePossible):
        assert then.spent == before.spent
        return
    assert not event.final
    assert then.num_workers == event.fits >= budget.min_workers
    for kind, limit in (("failures", budget.max_failures), ("preemptions", budget.max_preemptions)):
        was, is_now = getattr(before.spent, kind), getattr(then.spent, kind)
        assert was <= is_now <= was + 1
        assert limit == -1 or is_now <= max(limit, was)


@settings(deadline=None, max_examples=300)
@given(
    events=st.lists(any_event, max_size=60),
    budget=st.builds(
        Budget,
        st.integers(min_value=-1, max_value=3),
        st.integers(min_value=-1, max_value=3),
        st.integers(min_value=1, max_value=4),
    ),
    num_workers=st.integers(min_value=1, max_value=8),
)
def test_no_sequence_of_events_breaks_a_promise(events, budget, num_workers):
    state = Starting(0, num_workers)
    actions = []
    for event in events:
        if is_possible(state, event):
            before, (state, action) = state, step(state, event, budget)
            check_step(before, event, state, action, budget)
            actions.append(action)
    started = [0] + [one.attempt for one in actions if isinstance(one, StartWorkers)]
    stopped = [one.attempt for one in actions if isinstance(one, StopWorkers)]
    assert started == list(range(len(started))), "every attempt is started once, in order"
    assert stopped == sorted(set(stopped)), "and stopped at most once"
