"""Calls that every rank must make equally often, in any interleaving of the ranks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain._driver.gatherings import Gatherings, Incomplete


@st.composite
def interleavings(draw):
    """A number of ranks, and an order in which some of them make some calls."""
    world_size = draw(st.integers(min_value=1, max_value=5))
    ranks = st.integers(min_value=0, max_value=world_size - 1)
    return world_size, draw(st.lists(ranks, max_size=40))


def gathered(world_size, ranks):
    """Make the calls; an item names its rank and its number, the time is the number of calls."""
    gatherings = Gatherings(world_size)
    made = [0] * world_size
    complete = []
    for now_s, rank in enumerate(ranks):
        items = gatherings.add(rank, (rank, made[rank]), float(now_s))
        made[rank] += 1
        if items is not None:
            complete.append(items)
    return gatherings, made, complete


@settings(deadline=None)
@given(interleavings())
def test_a_call_is_complete_when_the_last_rank_makes_it_and_calls_complete_in_order(case):
    world_size, ranks = case
    _, made, complete = gathered(world_size, ranks)
    expected = [[(rank, call) for rank in range(world_size)] for call in range(min(made))]
    assert complete == expected


@settings(deadline=None)
@given(interleavings())
def test_the_oldest_is_the_first_call_that_somebody_has_made_and_somebody_has_not(case):
    world_size, ranks = case
    gatherings, made, _ = gathered(world_size, ranks)
    oldest = gatherings.oldest()
    call = min(made)
    if max(made) == call:
        assert oldest is None
        return
    times = {rank: [n for n, one in enumerate(ranks) if one == rank] for rank in range(world_size)}
    there = [rank for rank in range(world_size) if made[rank] > call]
    assert oldest == Incomplete(
        since_s=float(min(times[rank][call] for rank in there)),
        items={rank: (rank, call) for rank in there},
        world_size=world_size,
        is_waited_for=False,
    )
    assert oldest.missing == tuple(rank for rank in range(world_size) if rank not in there)


@settings(deadline=None)
@given(interleavings(), st.data())
def test_it_is_hopeless_when_a_rank_that_has_returned_is_behind(case, data):
    world_size, ranks = case
    gatherings, made, _ = gathered(world_size, ranks)
    returned = data.draw(st.sets(st.integers(min_value=0, max_value=world_size - 1)))
    assert gatherings.is_hopeless(returned) == any(made[rank] < max(made) for rank in returned)


@settings(deadline=None)
@given(interleavings())
def test_every_call_is_counted(case):
    world_size, ranks = case
    gatherings, made, _ = gathered(world_size, ranks)
    assert gatherings.counts == dict(enumerate(made))


def test_what_came_with_incomplete_calls_can_be_changed_and_arrives_changed():
    gatherings = Gatherings(2)
    gatherings.add(0, 1, 0.0)
    gatherings.add(0, 2, 0.0)
    gatherings.let_go(lambda item: item * 10)
    assert gatherings.oldest().items == {0: 10}
    assert gatherings.add(1, 7, 0.0) == [10, 7]
    assert gatherings.add(1, 8, 0.0) == [20, 8]


def test_a_call_is_waited_for_as_long_as_somebody_stands_still_for_it():
    gatherings = Gatherings(3)
    gatherings.add(0, "item", 0.0)
    assert not gatherings.oldest().is_waited_for
    gatherings.add(1, "item", 0.0, is_waited_for=True)
    assert gatherings.oldest().is_waited_for
    gatherings.let_go(str.upper)
    assert not gatherings.oldest().is_waited_for


@pytest.mark.parametrize("returned", [(), (0,), (0, 1)])
def test_nothing_is_hopeless_before_the_first_call(returned):
    assert not Gatherings(2).is_hopeless(returned)
