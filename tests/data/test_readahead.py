"""Threads that read ahead: order, budget, errors, ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrain.data.plans.readahead import Piece, ReadAhead
from minitrain.data.plans.runtime import Runtime
from tests.data.numbers import ROW_BYTES, NumberBlock

TABLE_ROWS = 4
TABLE_BYTES = TABLE_ROWS * ROW_BYTES
WAIT_S = 20


class Costly(NumberBlock):
    """A block that takes memory of its own while it is read."""

    @property
    def reading_bytes(self) -> int:
        return 100


def pieces(
    sizes: list[int], before: Callable[[int], None] | None = None, kind: type = NumberBlock
) -> list[Piece]:
    made, first = [], 0
    for size in sizes:
        made.append(Piece(kind(first, size, TABLE_ROWS, True, before), 0, size))
        first += size
    return made


def collect(ahead: ReadAhead, rows: list[int]) -> None:
    for table in ahead:
        rows.extend(table["id"].to_pylist())


def reader(read: list[Piece], *, threads: int = 3, budget_bytes: int = 10**6) -> ReadAhead:
    return ReadAhead(
        read, Runtime(), threads=threads, budget_bytes=budget_bytes, table_bytes=TABLE_BYTES
    )


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), max_size=8),
    threads=st.integers(1, 5),
    budget=st.integers(0, 400),
    kind=st.sampled_from([NumberBlock, Costly]),
)
def test_rows_come_in_order_whatever_the_budget(sizes, threads, budget, kind):
    ahead = reader(pieces(sizes, kind=kind), threads=threads, budget_bytes=budget)
    rows = [one for table in ahead for one in table["id"].to_pylist()]
    ahead.close()
    assert rows == list(range(sum(sizes)))


class Gauge:
    """Counts the tables that were begun and not taken."""

    def __init__(self) -> None:
        self.begun = 0
        self.changed = threading.Condition()

    def __call__(self, first: int) -> None:
        with self.changed:
            self.begun += 1
            self.changed.notify_all()

    def wait_for(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.begun >= number, WAIT_S)


@pytest.mark.parametrize("tables", [2, 5])
def test_no_more_is_read_than_the_budget_holds_under_a_slow_consumer(tables):
    gauge = Gauge()
    ahead = reader(
        pieces([TABLE_ROWS * 10] * 4, gauge), threads=2, budget_bytes=tables * TABLE_BYTES
    )
    taken = most = 0
    for taken, _ in enumerate(ahead, 1):
        # The threads are given the time to read all they may: then they stand.
        gauge.wait_for(min(40, taken + tables - 1))
        most = max(most, gauge.begun - taken)
    ahead.close()
    assert most <= tables + 1  # the one that is taken next is read in any case
    assert taken == 40


def test_a_block_that_takes_much_to_read_waits_until_there_is_room():
    begun = Gauge()
    read = pieces([TABLE_ROWS] * 3, begun, Costly)
    ahead = iter(reader_ := reader(read, threads=3, budget_bytes=150))
    next(ahead)
    assert begun.begun == 1  # the second would have made it 200
    assert sum(1 for _ in ahead) == 2
    reader_.close()


def test_several_blocks_are_read_at_a_time():
    met = threading.Barrier(3)
    ahead = reader(pieces([2] * 3, lambda _: met.wait(WAIT_S)), threads=3)
    assert sum(table.num_rows for table in ahead) == 6
    ahead.close()


def test_an_error_comes_after_the_rows_before_it():
    def fail(first: int) -> None:
        if first == 8:
            raise ValueError("broken")

    ahead = reader(pieces([8, 8], fail))
    rows: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        collect(ahead, rows)
    ahead.close()
    assert rows == list(range(8))


def test_an_error_while_files_are_listed_comes_after_the_blocks_before_it():
    def listed() -> Iterator[Piece]:
        yield from pieces([3])
        raise FileNotFoundError("no such folder")

    ahead = reader(listed())
    rows: list[int] = []
    with pytest.raises(FileNotFoundError, match="no such folder"):
        collect(ahead, rows)
    ahead.close()
    assert rows == [0, 1, 2]


def test_closing_ends_threads_that_wait_for_room():
    gauge = Gauge()
    ahead = reader(pieces([TABLE_ROWS * 100] * 4, gauge), threads=3, budget_bytes=TABLE_BYTES * 4)
    next(iter(ahead))
    gauge.wait_for(3)
    ahead.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("dataset-reader")]


def test_closing_closes_what_is_being_read():
    closed = threading.Event()

    class Closing(NumberBlock):
        def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
            try:
                yield from super().read(start, stop)
            finally:
                closed.set()

    ahead = reader(pieces([400], kind=Closing), threads=1, budget_bytes=TABLE_BYTES)
    next(iter(ahead))
    ahead.close()
    assert closed.is_set()
