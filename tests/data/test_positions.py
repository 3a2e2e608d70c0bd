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
