"""What an iterator says of where it is: whose it is, and what an interruption leaves of it."""

from __future__ import annotations

from typing import Any

import pytest

from minitrain.data.iterator import merged_positions
from minitrain.exceptions import DataError
from tests.data.numbers import numbers


def ids(batches: Any) -> list[int]:
    return [int(one) for batch in batches for one in batch["id"]]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (lambda ranks: ranks[1].state_dict(), "of rank 1 of 2, and this is rank 0 of 2"),
        (lambda _: numbers([10]).iterator().state_dict(), "of rank 0 of 1, and this is rank 0"),
        (lambda ranks: ranks[0].state_dict() | {"remaining": None}, r"no state .* resume\(\)"),
        (
            lambda ranks: merged_positions([rank.position() for rank in ranks]),
            r"no state .* resume\(\)",
        ),
    ],
    ids=["another rank", "other ranks", "not begun", "all ranks"],
)
def test_the_state_of_another_rank_is_refused(state, reason):
    ranks = numbers([10]).streaming_split(2, equal=True)
    with pytest.raises(DataError, match=reason):
        ranks[0].load_state_dict(state(ranks))


def test_a_state_that_does_not_say_whose_it_is_is_read():
    iterator = numbers([10]).iterator()
    state = iterator.state_dict() | {"remaining": [[4, 10]]}
    del state["rank"], state["world_size"]  # as they were written once
    iterator.load_state_dict(state)
    assert ids(iterator.iter_batches()) == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_out_of_the_iterator_the_position_is_where_it_was(error, prefetch):
    broken = ["the disk"]

    def before(first: int) -> None:
        if first == 6 and broken:
            raise error(broken.pop())

    iterator = numbers([6, 6], table_rows=6, before=before).iterator()
    batches = iter(iterator.iter_batches(batch_size=2, prefetch_batches=prefetch))
    assert ids(next(batches) for _ in range(3)) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(error, match="the disk"):
        next(batches)
    state = iterator.state_dict()
    assert (state["epoch"], state["remaining"]) == (0, [[6, 12]])
    assert ids(iterator.iter_batches()) == [6, 7, 8, 9, 10, 11]
    assert len(ids(iterator.iter_batches())) == 12


def test_an_interruption_while_the_loop_waits_leaves_the_position():
    iterator = numbers([6]).iterator()
    batches = iter(iterator.iter_batches(batch_size=2))
    next(batches)
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt)
    assert iterator.position()["remaining"] == [[2, 6]]


def test_an_error_in_an_older_loop_changes_nothing():
    iterator = numbers([6]).iterator()
    older, newer = (iter(iterator.iter_batches(batch_size=4)) for _ in range(2))
    next(older), next(newer)
    with pytest.raises(KeyboardInterrupt):
        older.throw(KeyboardInterrupt)
    assert (iterator.position()["epoch"], iterator.position()["remaining"]) == (1, [[4, 6]])
