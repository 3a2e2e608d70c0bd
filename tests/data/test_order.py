"""Which rows come, to whom and when: over all ranks, epochs and interruptions."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minitrain.data.order import (
    Layout,
    Position,
    Run,
    Shuffled,
    after,
    cut,
    fingerprint,
    key_of,
    locate,
    merged,
    permutation,
    rows_in,
    share,
    shuffled_indices,
    whole,
    window,
)
from minitrain.exceptions import DataError

LAYOUT = "0123456789abcdef"


def rows_of(segments):
    """Return the numbers of rows in the order in which the segments deliver them."""
    rows = []
    for segment in segments:
        if isinstance(segment, Run):
            rows += range(segment.start, segment.stop)
        else:
            window_rows = rows_of(segment.runs)
            rows += [window_rows[index] for index in shuffled_indices(segment)]
    return rows


@dataclass(frozen=True)
class Kind:
    """How an epoch is divided and shuffled."""

    total: int
    equal: bool = True
    remainder: str = "drop"
    size: int | None = None
    seed: int = 0


class Rank:
    """One rank's iteration over one epoch, or over what is left of it."""

    def __init__(self, kind, epoch, remaining, rank, world):
        self.kind, self.epoch = kind, epoch
        self.share = share(
            remaining, kind.total, rank, world, equal=kind.equal, remainder=kind.remainder
        )
        self.own = rows_of(window(self.share.own, kind.size, kind.seed, epoch))
        self.rows = self.own + rows_of(self.share.pad)

    def position(self, delivered):
        kind = self.kind
        left = after(self.share.own, kind.size, kind.seed, self.epoch, delivered)
        position = Position(self.epoch, left, self.share.tail, LAYOUT)
        return Position.from_json(json.loads(json.dumps(position.to_json())))


def ranks_of(kind, position, world):
    """Return the ranks that go on from a position."""
    remaining = whole(kind.total) if position.remaining is None else position.remaining
    return [Rank(kind, position.epoch, remaining, rank, world) for rank in range(world)]


def beginning(epoch=0):
    return Position(epoch, None, (), LAYOUT)


def passed_through_json(position):
    return Position.from_json(json.loads(json.dumps(position.to_json())))


totals = st.integers(0, 120)
worlds = st.integers(1, 7)
sizes = st.none() | st.integers(1, 150)
kinds = st.builds(
    Kind,
    total=totals,
    equal=st.booleans(),
    remainder=st.sampled_from(["drop", "pad"]),
    size=sizes,
    seed=st.integers(-(2**70), 2**70),
)


@st.composite
def segments(draw):
    """Draw segments as they lie in positions: of disjoint rows, in any order, some shuffled."""
    bounds = sorted(draw(st.sets(st.integers(0, 60), max_size=12)))
    runs = [Run(*pair) for pair in zip(bounds[::2], bounds[1::2], strict=False)]
    found = []
    for run in draw(st.permutations(runs)):
        first = draw(st.integers(0, run.rows - 1))
        last = draw(st.integers(first + 1, run.rows))
        shuffled = Shuffled((run,), draw(st.integers(0, 2**128 - 1)), first, last)
        found.append(draw(st.sampled_from([run, shuffled])))
    return tuple(found)


# Keys and permutations


def test_a_key_and_its_permutation_stay_what_they_are():
    # Saved positions mean these: a change here is a change of every order, and loses rows of an
    # epoch that is continued.
    assert key_of("window", 1, 2, 3) == 0xFD3A058D5DD3D0CADADD53A3F39D7E18
    assert permutation(10, "blocks", 1).tolist() == [2, 0, 9, 1, 4, 8, 7, 3, 6, 5]
    assert fingerprint([3, 0, 4], 7, "rows") == "36daaf494e4b05a7"


def test_another_process_has_the_same_order():
    program = (
        "from minitrain.data.order import *; import sys; "
        "print(key_of('a', 5), permutation(50, 'b', -1).tolist(), fingerprint([1, 2], 'c')); "
        "print({'torch', 'pandas', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    here = f"{key_of('a', 5)} {permutation(50, 'b', -1).tolist()} {fingerprint([1, 2], 'c')}"
    assert done.stdout.splitlines() == [here, "set()"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b"), ("ab",)),
        (("a", "b"), ("a,b",)),
        (('a","b',), ("a", "b")),
        ((1, 2), (12,)),
        ((1,), ("1",)),
        ((1,), (-1,)),
        ((), ("",)),
        ((1, 2), (2, 1)),
    ],
)
def test_different_parts_have_different_keys(one, other):
    assert key_of(*one) != key_of(*other)


def test_equal_numbers_have_equal_keys_and_others_than_integers_have_none():
    assert key_of(np.int64(3)) == key_of(3)
    assert key_of(2**100) < 2**128
    with pytest.raises(TypeError):
        key_of(1.5)


@given(st.integers(0, 300), st.integers())
def test_a_permutation_has_every_number_once(n, seed):
    numbers = permutation(n, "any", seed)
    assert numbers.dtype == np.int64
    assert sorted(numbers.tolist()) == list(range(n))


def test_permutations_of_other_seeds_and_epochs_are_others():
    orders = {
        tuple(permutation(20, "blocks", seed, epoch)) for seed in range(20) for epoch in range(20)
    }
    assert len(orders) == 400


def test_a_permutation_favours_no_place():
    counts = np.zeros((6, 6))
    for seed in range(6000):
        counts[np.arange(6), permutation(6, "fair", seed)] += 1
    assert np.abs(counts - 1000).max() < 150


def test_a_fingerprint_tells_rows_order_seed_and_shuffle_apart():
    prints = [
        fingerprint([1, 2, 3], 0, "blocks"),
        fingerprint([1, 3, 2], 0, "blocks"),
        fingerprint([1, 2, 3, 0], 0, "blocks"),
        fingerprint([1, 2, 3], 1, "blocks"),
        fingerprint([1, 2, 3], 0, "rows"),
        fingerprint([], 0, "rows"),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(np.array([1, 2, 3], dtype=np.int32), 0, "blocks") == prints[0]


def test_a_fingerprint_changes_if_keys_come_to_mean_other_permutations(monkeypatch):
    before = fingerprint([1, 2, 3])
    monkeypatch.setattr(np.random, "PCG64", np.random.PCG64DXSM)
    assert fingerprint([1, 2, 3]) != before


# Segments


@given(segments(), st.integers(0, 70), st.integers(0, 70))
def test_a_cut_has_the_rows_between_in_their_order(whole_of_it, start, stop):
    part = cut(whole_of_it, start, stop)
    assert rows_of(part) == rows_of(whole_of_it)[start:stop]
    assert rows_in(part) == len(rows_of(part))
    assert all(segment.rows > 0 for segment in part)


@given(segments(), st.lists(st.integers(0, 70), max_size=5))
def test_pieces_laid_together_are_one_again(whole_of_it, at):
    bounds = [0, *sorted(at), 100]
    pieces = [
        piece
        for start, stop in itertools.pairwise(bounds)
        for piece in cut(whole_of_it, start, stop)
    ]
    assert cut(pieces, 0, 100) == cut(whole_of_it, 0, 100)
    assert len(cut(pieces, 0, 100)) <= len(whole_of_it)


def test_pieces_of_different_windows_stay_apart():
    window_rows = (Run(0, 10),)
    pieces = (Shuffled(window_rows, 1, 0, 5), Shuffled(window_rows, 2, 5, 10))
    assert cut(pieces, 0, 10) == pieces


# Blocks


@given(st.lists(st.integers(0, 9), max_size=12), st.data())
def test_a_run_is_found_in_its_blocks(rows, data):
    layout = Layout(np.array(rows, dtype=np.int64))
    assert layout.total == sum(rows)
    if not layout.total:
        return
    start = data.draw(st.integers(0, layout.total - 1))
    run = Run(start, data.draw(st.integers(start + 1, layout.total)))
    cells = [(block, row) for block, count in enumerate(rows) for row in range(count)]
    parts = layout.locate(run)
    assert all(first < last for _, first, last in parts)
    found = [(block, row) for block, first, last in parts for row in range(first, last)]
    assert found == cells[run.start : run.stop]
    assert parts == locate(layout.offsets, run)


def test_a_run_is_found_among_millions_of_blocks():
    layout = Layout(np.full(3_000_000, 2**20))
    assert layout.total == 3_000_000 * 2**20
    run = Run(2_000_000 * 2**20 - 1, 2_000_000 * 2**20 + 1)
    assert layout.locate(run) == [(1_999_999, 2**20 - 1, 2**20), (2_000_000, 0, 1)]


def test_rows_that_a_dataset_does_not_have_are_not_left_out_silently():
    with pytest.raises(DataError, match=r"rows 5 to 12 .* of a dataset of 10 rows"):
        Layout(np.array([4, 6])).locate(Run(5, 12))


def test_a_layout_does_not_change_with_the_array_it_was_made_of():
    rows = np.array([4, 6])
    layout = Layout(rows)
    rows[0] = 100
    assert layout.rows.tolist() == [4, 6]
    with pytest.raises(ValueError, match="read-only"):
        layout.offsets[0] = 1


# Shares


@pytest.mark.parametrize(
    ("total", "world", "equal", "remainder", "expected"),
    [
        (10, 4, True, "drop", ["01|", "23|", "45|", "67|"]),
        (10, 4, True, "pad", ["012|", "345|", "678|", "9|01"]),
        (10, 4, False, "drop", ["012|", "345|", "67|", "89|"]),
        (10, 4, False, "pad", ["012|", "345|", "67|", "89|"]),
        (8, 4, True, "pad", ["01|", "23|", "45|", "67|"]),
        (2, 5, True, "drop", ["|", "|", "|", "|", "|"]),
        (2, 5, True, "pad", ["0|", "1|", "|0", "|1", "|0"]),
        (6, 5, True, "pad", ["01|", "23|", "45|", "|01", "|23"]),
        (2, 3, False, "drop", ["0|", "1|", "|"]),
        (3, 1, True, "drop", ["012|"]),
        (0, 3, True, "drop", ["|", "|", "|"]),
        (0, 3, True, "pad", ["|", "|", "|"]),
        (0, 3, False, "drop", ["|", "|", "|"]),
    ],
)
def test_shares_of_an_epoch(total, world, equal, remainder, expected):
    ranks = ranks_of(Kind(total, equal, remainder), beginning(), world)
    assert [
        "".join(map(str, rank.own)) + "|" + "".join(map(str, rows_of(rank.share.pad)))
        for rank in ranks
    ] == expected


def test_the_dropped_rows_are_the_last_ones_and_each_rank_knows_them():
    ranks = ranks_of(Kind(11), beginning(), 4)
    assert [rank.share.tail for rank in ranks] == [(Run(8, 11),)] * 4


def test_padding_comes_from_the_whole_epoch_and_not_from_what_remains_of_it():
    last = share((Run(50, 55),), 100, 1, 2, equal=True, remainder="pad")
    assert (last.own, last.pad) == ((Run(53, 55),), (Run(0, 1),))


@given(kinds, worlds, segments())
def test_over_all_ranks_each_remaining_row_comes_once(kind, world, remaining):
    kind = replace(kind, total=kind.total + 60)  # segments() lie among the first 60 rows
    ranks = [Rank(kind, 0, remaining, rank, world) for rank in range(world)]
    tails = {rank.share.tail for rank in ranks}
    assert len(tails) == 1
    (tail,) = tails
    owned = [row for rank in ranks for row in rows_of(rank.share.own)]
    assert owned + rows_of(tail) == rows_of(remaining)
    assert rows_in(tail) < world
    lengths = [len(rank.rows) for rank in ranks]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= (not kind.equal)
    if kind.equal and kind.remainder == "pad":
        assert not tail
        assert sum(lengths) - len(owned) < world
    else:
        assert sum(lengths) == len(owned)


# Windows


@given(segments(), sizes, st.integers(), st.integers(0, 5))
def test_windows_have_the_rows_of_their_runs_in_another_order(own, size, seed, epoch):
    delivered = list(window(own, size, seed, epoch))
    assert sorted(rows_of(delivered)) == sorted(rows_of(own))
    if size is None:
        assert tuple(delivered) == own
        return
    older = [segment for segment in own if isinstance(segment, Shuffled)]
    assert [segment for segment in delivered if segment in older] == older
    new = [segment for segment in delivered if segment not in older]
    assert all(isinstance(segment, Shuffled) and segment.rows <= size for segment in new)
    assert len({segment.key for segment in new}) == len(new)


def test_runs_fill_windows_and_only_an_older_piece_or_the_end_makes_one_shorter():
    older = Shuffled((Run(50, 60),), 7, 4, 9)
    own = (Run(0, 5), Run(20, 28), older, Run(30, 34), Run(70, 71))
    found = [(one.runs, one.first, one.last) for one in window(own, 4, 0, 0)]
    assert found == [
        ((Run(0, 4),), 0, 4),
        ((Run(4, 5), Run(20, 23)), 0, 4),
        ((Run(23, 27),), 0, 4),
        ((Run(27, 28),), 0, 1),
        ((Run(50, 60),), 4, 9),
        ((Run(30, 34),), 0, 4),
        ((Run(70, 71),), 0, 1),
    ]


def test_windows_are_made_when_they_are_asked_for():
    made = window((Run(0, 10**15),), 10, 0, 0)
    assert next(made).runs == (Run(0, 10),)
    assert next(made).runs == (Run(10, 20),)


def test_a_window_is_shuffled_otherwise_in_each_epoch_seed_and_place():
    def order(first_row, seed, epoch):
        (made,) = window((Run(first_row, first_row + 20),), 20, seed, epoch)
        return tuple(shuffled_indices(made).tolist())

    orders = [order(first, seed, epoch) for first in (0, 20) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == len(orders)
    assert order(0, 1, 1) == order(0, 1, 1)


@given(segments(), sizes, st.integers(0, 3), st.integers(0, 70), st.integers(0, 70))
def test_what_is_left_is_what_would_have_come(own, size, epoch, delivered, more):
    rows = rows_of(window(own, size, 0, epoch))
    left = after(own, size, 0, epoch, delivered)
    assert rows_of(window(left, size, 0, epoch)) == rows[delivered:]
    twice = after(left, size, 0, epoch, more)
    assert rows_of(window(twice, size, 0, epoch)) == rows[delivered + more :]
    assert len(left) <= len(own) + 1


def test_a_window_that_has_not_begun_is_left_as_runs():
    own = (Run(0, 100),)
    assert after(own, 10, 0, 0, 30) == (Run(30, 100),)
    rest, runs = after(own, 10, 0, 0, 33)
    assert (rest.runs, rest.first, rest.last) == ((Run(30, 40),), 3, 10)
    assert runs == Run(40, 100)
    assert after(own, 10, 0, 0, 100) == after(own, 10, 0, 0, 1000) == ()


def test_what_is_left_of_very_many_windows_is_known_without_making_them():
    rest, runs = after((Run(0, 10**15),), 10, 0, 0, 5 * 10**14 + 1)
    assert (rest.runs, rest.first) == ((Run(5 * 10**14, 5 * 10**14 + 10),), 1)
    assert runs == Run(5 * 10**14 + 10, 10**15)


# Interruptions


@given(kinds, worlds, st.data())
@example(Kind(11, size=4), 3, None)
def test_the_same_ranks_go_on_as_if_nothing_had_happened(kind, world, data):
    """Interrupt an epoch several times, after equally many rows of each rank."""
    uninterrupted = ranks_of(kind, beginning(), world)
    length = max(len(rank.rows) for rank in uninterrupted)
    times = (
        [0, 1, 2, 3] if data is None else data.draw(st.lists(st.integers(0, length), max_size=4))
    )
    position, done = beginning(), 0
    for at in sorted(times):
        ranks = ranks_of(kind, position, world)
        position = passed_through_json(merged([rank.position(at - done) for rank in ranks]))
        done = at
    padding_began = done > min(len(rank.own) for rank in uninterrupted)
    for before, rank in zip(uninterrupted, ranks_of(kind, position, world), strict=True):
        assert rank.own == before.own[done:]
        assert rank.share.tail == before.share.tail
        assert len(rank.rows) == len(before.rows[done:])
        assert padding_began or rank.rows == before.rows[done:]


@given(kinds, worlds, st.data())
def test_any_ranks_deliver_each_row_once(kind, world, data):
    """Interrupt an epoch several times, anywhere in each rank, and go on with other ranks."""
    position, delivered, bound = beginning(), [], 1
    for _ in range(data.draw(st.integers(0, 4))):
        ranks = ranks_of(kind, position, world)
        counts = [data.draw(st.integers(0, len(rank.rows))) for rank in ranks]
        for rank, count in zip(ranks, counts, strict=True):
            delivered += rank.own[:count]
        position = passed_through_json(
            merged([rank.position(count) for rank, count in zip(ranks, counts, strict=True)])
        )
        bound += 2 * world + 1
        assert position.epoch == 0
        assert len(position.remaining) <= bound
        assert sorted(delivered + rows_of(position.remaining)) == list(range(kind.total))
        world = data.draw(worlds)
    ranks = ranks_of(kind, position, world)
    for rank in ranks:
        delivered += rank.own
    dropped = rows_of(ranks[0].share.tail)
    assert sorted(delivered + dropped) == list(range(kind.total))
    assert len(dropped) < world
    assert len({len(rank.rows) for rank in ranks}) <= 1 + (not kind.equal)


@given(kinds, worlds, worlds, st.data())
def test_ranks_in_the_next_epoch_have_nothing_left_in_this_one(kind, world, next_world, data):
    delivered, positions = [], []
    this, following = (ranks_of(kind, beginning(epoch), world) for epoch in (3, 4))
    for rank, in_next in zip(this, following, strict=True):
        where = data.draw(st.sampled_from(["this", "between", "next"]))
        count = data.draw(st.integers(0, len(rank.rows)))
        delivered += rank.own[: count if where == "this" else None]
        positions.append(
            {
                "this": rank.position(count),
                "between": beginning(epoch=4),
                "next": in_next.position(count),
            }[where]
        )
    position = merged(positions)
    epochs = {one.epoch for one in positions}
    if any(one.epoch == 3 and one.remaining for one in positions):
        rest = sorted(set(range(kind.total)) - set(delivered))
        assert position.epoch == 3
        ranks = ranks_of(kind, position, next_world)
        owned = [row for rank in ranks for row in rank.own]
        assert sorted(owned + rows_of(ranks[0].share.tail)) == rest
    elif len(epochs) == 2 or beginning(epoch=4) in positions:
        assert position == beginning(epoch=4)
    else:
        assert {position.epoch} == epochs


@given(st.lists(st.integers(0, 15), max_size=10), kinds, worlds, st.data())
def test_an_epoch_reads_each_row_of_each_block_once(rows, kind, world, data):
    """Read blocks in another order each epoch; begin and end batches anywhere in them."""
    kind = replace(kind, total=sum(rows))
    for epoch in range(2):
        order = permutation(len(rows), "blocks", kind.seed, epoch)
        layout = Layout(np.array(rows, dtype=np.int64)[order])
        numbers = []
        ranks = ranks_of(kind, beginning(epoch), world)
        for rank in ranks:
            batch_size = data.draw(st.integers(1, 20))
            for start in range(0, len(rank.own), batch_size):
                numbers += rank.own[start : start + batch_size]
        numbers += rows_of(ranks[0].share.tail)
        found = [layout.locate(Run(number, number + 1)) for number in numbers]
        cells = sorted((order[block], start) for ((block, start, _),) in found)
        assert cells == [(block, row) for block, count in enumerate(rows) for row in range(count)]


HALF, REST = (Run(3, 5),), (Run(8, 10),)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        # (epoch, remaining) of each rank, and of all; the tail is row 10 where there is one.
        ([(0, None), (0, None)], (0, None)),
        ([(2, HALF), (2, REST)], (2, (*HALF, Run(8, 11)))),
        ([(2, REST), (2, HALF)], (2, (*REST, *HALF, Run(10, 11)))),
        ([(2, ()), (2, HALF)], (2, (*HALF, Run(10, 11)))),
        ([(2, ()), (2, ())], (2, (Run(10, 11),))),
        ([(3, None), (2, REST)], (2, (Run(8, 11),))),
        ([(3, HALF), (2, REST)], (2, (Run(8, 11),))),
        ([(5, ()), (2, REST)], (2, (Run(8, 11),))),
        ([(3, HALF), (2, ())], (3, None)),
        ([(3, None), (2, ())], (3, None)),
        ([(5, HALF), (2, ())], (3, None)),
        ([(3, None), (3, HALF)], (3, None)),
        ([(3, None), (4, HALF)], (3, None)),
    ],
)
def test_where_all_ranks_stand(positions, expected):
    tail = (Run(10, 11),)
    each = [
        Position(epoch, remaining, () if remaining is None else tail, LAYOUT)
        for epoch, remaining in positions
    ]
    assert merged(each) == Position(*expected[:1], expected[1], (), LAYOUT)


def test_dropped_rows_come_if_there_are_fewer_ranks_after_an_interruption():
    kind = Kind(11)
    position = merged([rank.position(2) for rank in ranks_of(kind, beginning(), 4)])
    assert [rank.rows for rank in ranks_of(kind, position, 3)] == [[8], [9], [10]]


def test_the_rest_of_one_window_can_be_divided():
    kind = Kind(20, size=20, seed=5)
    (alone,) = ranks_of(kind, beginning(), 1)
    position = merged([alone.position(8)])
    ranks = ranks_of(kind, position, 3)
    assert [row for rank in ranks for row in rank.rows] == alone.rows[8:]
    assert merged([rank.position(0) for rank in ranks]).remaining == position.remaining


def test_positions_of_different_data_are_not_mixed():
    positions = [Position(0, None, (), "a" * 16), Position(0, None, (), "b" * 16)]
    with pytest.raises(DataError, match=r"different datasets .*aaaaaaaaaaaaaaaa, bbbbbbbbbbbbbbbb"):
        merged(positions)


def test_positions_of_different_divisions_are_not_mixed():
    two, four = (ranks_of(Kind(11), beginning(), world)[0].position(1) for world in (2, 4))
    with pytest.raises(DataError, match="epoch 0 do not belong together"):
        merged([two, four])


# Positions as JSON


@given(st.integers(0), st.none() | segments(), segments())
def test_a_position_survives_json(epoch, remaining, tail):
    position = Position(epoch, remaining, tail, LAYOUT)
    assert passed_through_json(position) == position


def test_a_position_as_json_is_short_and_stays_what_it_is():
    shuffled = Shuffled((Run(0, 4), Run(8, 10)), 255, 2, 6)
    position = Position(3, (shuffled, Run(10, 20)), (Run(90, 92),), LAYOUT)
    assert position.to_json() == {
        "epoch": 3,
        "remaining": [[[[0, 4], [8, 10]], "ff", 2, 6], [10, 20]],
        "tail": [[90, 92]],
        "layout": LAYOUT,
    }


GOOD = {"epoch": 0, "remaining": None, "tail": [], "layout": LAYOUT}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "it is None"),
        ([1], r"it is \[1\]"),
        ({"epoch": 0, "remaining": None, "layout": ""}, "it has no 'tail'"),
        (GOOD | {"epoch": -1}, "'epoch' is -1, not an integer of 0 or more"),
        (GOOD | {"epoch": True}, "'epoch' is True"),
        (GOOD | {"epoch": 1.5}, "'epoch' is 1.5"),
        (GOOD | {"layout": 3}, "'layout' is 3, not a text"),
        (GOOD | {"tail": None}, "'tail' is None, not a list"),
        (GOOD | {"remaining": "all"}, "'remaining' is 'all', not a list"),
        (GOOD | {"remaining": [[0, 1], 7]}, r"'remaining'\[1\] is 7, not \[start, stop\] or"),
        (GOOD | {"remaining": [[1, 2, 3]]}, r"'remaining'\[0\] is \[1, 2, 3\], not"),
        (GOOD | {"remaining": [[5, 5]]}, r"the stop of 'remaining'\[0\] is 5, .* of 6 or more"),
        (GOOD | {"tail": [["0", 5]]}, r"the start of 'tail'\[0\] is '0'"),
        (GOOD | {"tail": [[[7], "f", 0, 1]]}, r"'tail'\[0\]\[0\]\[0\] is 7, not \[start, stop\]"),
        (GOOD | {"tail": [[[[0, 4]], "0x1", 0, 1]]}, r"the key of 'tail'\[0\] is '0x1'"),
        (GOOD | {"tail": [[[[0, 4]], "f" * 33, 0, 1]]}, r"the key of 'tail'\[0\]"),
        (GOOD | {"tail": [[[[0, 4]], "f", -1, 1]]}, r"the first row of 'tail'\[0\] is -1"),
        (GOOD | {"tail": [[[[0, 4]], "f", 2, 2]]}, r"the last row of 'tail'\[0\] is 2"),
        (GOOD | {"tail": [[[[0, 4]], "f", 2, 5]]}, r"is 5, not one of the 4 in its runs"),
        (GOOD | {"tail": [[[], "f", 0, 1]]}, "is 1, not one of the 0 in its runs"),
    ],
)
def test_anything_else_is_no_position_and_the_error_says_why(wrong, said):
    with pytest.raises(DataError, match=f"not a saved position of a dataset: .*{said}"):
        Position.from_json(wrong)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=12,
)


@pytest.mark.campaign
@settings(max_examples=40, deadline=None)
@given(json_values, json_values)
def test_no_json_breaks_in_another_way(remaining, tail):
    try:
        position = Position.from_json(GOOD | {"remaining": remaining, "tail": tail})
    except DataError:
        return
    assert position.to_json() == GOOD | {"remaining": remaining, "tail": tail}
    rows_of((*(position.remaining or ()), *position.tail))
