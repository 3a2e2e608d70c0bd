"""Tables that all processes of a host map, and blocks of them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from minitrain._os.forks import unlock_in_forks
from minitrain.data import order
from minitrain.data.context import DataContext
from minitrain.data.plans.block import Block
from minitrain.data.plans.tables import in_tables
from minitrain.data.processes.shared import SharedTable, once_per_host

__all__ = [
    "HostTable",
    "Permutation",
    "TableBlock",
    "TakenBlock",
    "blocks_of",
    "for_this_host_alone",
    "meet_in",
    "taken",
]

_BLOCKS_AT_LEAST = 16
"""A table is cut into so many blocks at least, so that their order can be shuffled."""
_ROWS_AT_LEAST = 1024


_meeting_folder: Path | None = None
_stays_here: ContextVar[bool] = ContextVar("_stays_here", default=False)


def meet_in(folder: Path | None) -> None:
    """Say where the processes of this host that run the same plan meet.

    The first of them that needs a table which was made on another host makes it, for all. Without
    such a folder each makes its own.
    """
    global _meeting_folder  # noqa: PLW0603 - one per process, as tempfile.tempdir
    _meeting_folder = folder


@contextmanager
def for_this_host_alone() -> Generator[None]:
    """Pickle no more of tables than who maps them on this host needs."""
    token = _stays_here.set(True)
    try:
        yield
    finally:
        _stays_here.reset(token)


class HostTable:
    """A table that is made once per host.

    Args:
        shared: The one that was made on the host where the plan was resolved.
        make: Makes it again, on another host; it is pickled with what it needs. None: it is of this
            host alone.
    """

    def __init__(self, shared: SharedTable, make: Callable[[], SharedTable] | None) -> None:
        self.rows = shared.rows
        self.size_bytes = shared.size_bytes
        self._shared = shared
        self._make = make
        self._key = uuid.uuid4().hex
        self._lock = threading.Lock()
        unlock_in_forks(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None} | ({"_make": None} if _stays_here.get() else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})
        unlock_in_forks(self)

    def table(self) -> pa.Table:
        """Return the rows, mapped; of several threads that ask, one makes them."""
        with self._lock:
            if self._make is not None and not self._shared.reachable():
                folder, make = _meeting_folder, self._make
                self._shared = make() if folder is None else once_per_host(self._key, folder, make)
            return self._shared.table()


@dataclass(frozen=True, slots=True)
class TableBlock(Block):
    """Consecutive rows of a shared table."""

    shared: HostTable
    start: int
    stop: int
    origin: str

    @classmethod
    def all_of(cls, shared: HostTable, origin: str) -> Self:
        """Return all rows as one block."""
        return cls(shared, 0, shared.rows, origin)

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows of the table."""
        return self.start == 0 and self.stop == self.shared.rows

    @property
    def name(self) -> str:  # type: ignore[override]
        """Where the rows came from."""
        return f"{self.origin}, from row {self.start:,}"

    @property
    def rows(self) -> int:  # type: ignore[override]
        """How many rows."""
        return self.stop - self.start

    @property
    def size_bytes(self) -> int:  # type: ignore[override]
        """The table's, in proportion."""
        return self.shared.size_bytes * self.rows // max(self.shared.rows, 1)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield slices of the table: nothing is copied."""
        last = self.stop if stop is None else min(self.stop, self.start + stop)
        if self.start + start >= last:
            return
        part = self.shared.table().slice(self.start + start, last - self.start - start)
        yield from in_tables(part, DataContext.get_current().target_table_bytes)


class Permutation:
    """A random order of rows, worked out when the first of them is read: it takes 8 bytes a row.

    Args:
        rows: How many there are.
        parts: What the order stands for, as for :func:`minitrain.data.order.permutation`.
    """

    def __init__(self, rows: int, *parts: int | str) -> None:
        self._rows = rows
        self._parts = parts
        self._indices: np.ndarray | None = None
        self._lock = threading.Lock()
        unlock_in_forks(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Permutation, (self._rows, *self._parts)

    def indices(self, start: int, stop: int) -> np.ndarray:
        """Return which rows come in these places."""
        with self._lock:
            if self._indices is None:
                self._indices = order.permutation(self._rows, *self._parts)
            return self._indices[start:stop]


@dataclass(frozen=True, slots=True, eq=False)
class TakenBlock(Block):
    """Rows from anywhere in a shared table.

    Args:
        shared: The table.
        permutation: The order of all its rows.
        start: The place in it of the first row.
        stop: The place after the last one's.
    """

    shared: HostTable
    permutation: Permutation
    start: int
    stop: int

    @property
    def name(self) -> str:  # type: ignore[override]
        """What they are."""
        return "shuffled rows"

    @property
    def rows(self) -> int:  # type: ignore[override]
        """How many rows."""
        return self.stop - self.start

    @property
    def size_bytes(self) -> int:  # type: ignore[override]
        """The table's, in proportion."""
        return self.shared.size_bytes * self.rows // max(self.shared.rows, 1)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield the rows as one table."""
        last = self.stop if stop is None else min(self.stop, self.start + stop)
        if self.start + start < last:
            indices = self.permutation.indices(self.start + start, last)
            yield taken(self.shared.table(), indices)


def blocks_of(shared: HostTable, origin: str) -> list[TableBlock]:
    """Cut a shared table into blocks."""
    target = DataContext.get_current().target_block_bytes
    count = max(_BLOCKS_AT_LEAST, -(-shared.size_bytes // target))
    rows = max(_ROWS_AT_LEAST, -(-shared.rows // count))
    return [
        TableBlock(shared, start, min(start + rows, shared.rows), origin)
        for start in range(0, shared.rows, rows)
    ]


def taken(table: pa.Table, indices: np.ndarray) -> pa.Table:
    """Return rows of a table of many chunks.

    ``Table.take`` joins all chunks of each column before it takes anything (pyarrow 26), which for
    a table larger than memory would be the end; here each chunk gives its own.
    """
    batches = table.to_batches()
    ends = np.cumsum([batch.num_rows for batch in batches])
    by_place = np.argsort(indices, kind="stable")
    ordered = indices[by_place]
    parts = []
    first = 0
    for number in np.unique(np.searchsorted(ends, ordered, side="right")):
        last = int(np.searchsorted(ordered, ends[number]))
        start = ends[number] - batches[number].num_rows
        parts.append(batches[number].take(pa.array(ordered[first:last] - start)))
        first = last
    back = np.empty_like(by_place)
    back[by_place] = np.arange(len(by_place))
    return pa.Table.from_batches(parts, schema=table.schema).combine_chunks().take(pa.array(back))
