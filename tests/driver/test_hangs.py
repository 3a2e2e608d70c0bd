"""Who has been silent for too long, and who of them is to blame."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrain._driver.hangs import Silence, guilty_ranks, why_silent

COMPUTING = 'pid 1, running\n\nMain thread\n  File "train.py", line 3 in train'
WAITING = (
    "pid 2, sleeping\n\nMain thread\n"
    '  File "train.py", line 4 in train\n'
    '  File "/lib/torch/distributed/distributed_c10d.py", line 9 in all_reduce'
)


def silence(timeout_s=10.0, world_size=3):
    watch = Silence(timeout_s)
    watch.begin(world_size, 100.0)
    return watch


def test_without_a_timeout_nobody_is_silent():
    watch = silence(None)
    assert watch.due_s(()) == math.inf
    assert watch.of((), 1e9) == []


@pytest.mark.parametrize(
    ("now_s", "expected"), [(100.0, []), (109.9, []), (110.0, [0, 2]), (115.0, [0, 1, 2])]
)
def test_a_rank_that_said_something_has_its_time_again(now_s, expected):
    watch = silence()
    watch.heard(1, 105.0)
    assert watch.due_s(()) == 110.0
    assert watch.of((), now_s) == expected


def test_those_who_need_not_speak_are_not_waited_for():
    watch = silence()
    assert watch.due_s({0, 1, 2}) == math.inf
    assert watch.of({0, 2}, 200.0) == [1]


def test_one_that_had_to_wait_for_others_begins_anew_when_it_is_let_go():
    watch = silence()
    assert watch.of({1}, 109.0) == []
    watch.heard(0, 109.0)
    watch.heard(2, 109.0)
    assert watch.of((), 115.0) == []
    assert watch.due_s(()) == 119.0
    assert watch.of((), 125.0) == [0, 1, 2]


def test_another_attempt_begins_anew():
    watch = silence()
    watch.begin(2, 500.0)
    assert watch.of((), 509.0) == []
    assert watch.of((), 510.0) == [0, 1]


@given(
    heard=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 50)), max_size=20),
    excused=st.sets(st.integers(0, 3)),
    now_s=st.floats(0, 200),
)
def test_nobody_is_silent_before_the_deadline_that_was_waited_for(heard, excused, now_s):
    watch = Silence(10.0)
    watch.begin(4, 0.0)
    for rank, at_s in sorted(heard, key=lambda pair: pair[1]):
        watch.heard(rank, at_s)
    due_s = watch.due_s(excused)
    silent = watch.of(excused, now_s)
    assert bool(silent) == (now_s >= due_s)
    assert not excused & set(silent)


@pytest.mark.parametrize(
    ("stacks", "expected"),
    [
        ({0: WAITING, 1: COMPUTING, 2: WAITING}, [1]),
        ({0: COMPUTING, 1: COMPUTING, 2: WAITING}, [0, 1]),
        ({0: WAITING, 1: WAITING, 2: WAITING}, [0, 1, 2]),
        ({}, [0, 1, 2]),
    ],
    ids=["one is elsewhere", "two are", "all wait: nobody can tell", "nothing is known"],
)
def test_who_waits_in_a_collective_is_not_to_blame_if_another_is_not_there(stacks, expected):
    assert guilty_ranks([0, 1, 2], stacks) == expected


@pytest.mark.parametrize(
    ("stacks", "excused", "expected"),
    [
        ({0: WAITING, 1: WAITING, 2: COMPUTING}, [], [2]),
        ({0: WAITING, 1: WAITING, 2: COMPUTING}, [2], [0, 1]),
        ({0: WAITING, 1: WAITING, 2: WAITING}, [], [0, 1]),
        ({0: COMPUTING, 1: WAITING, 2: COMPUTING}, [], [0]),
        ({0: WAITING, 1: WAITING}, [], [0, 1]),
    ],
    ids=["it is elsewhere", "it need not come", "it is there", "another is", "it does not answer"],
)
def test_whoever_spoke_a_moment_later_is_to_blame_if_all_the_silent_wait(stacks, excused, expected):
    assert guilty_ranks([0, 1], stacks, excused=excused) == expected


def test_a_stopped_process_is_called_that():
    assert "SIGSTOP" in why_silent("pid 3, stopped, 1 thread\n\nMain thread ...")
    assert why_silent(COMPUTING + "\n# stopped here") == ""
    assert why_silent("") == ""
