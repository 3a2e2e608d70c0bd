"""Sources that read no files: numbers, tables in memory, and the datasets of other libraries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.context import DataContext
from minitrain.data.plans.block import Block, Source
from minitrain.data.plans.tables import in_tables, sliced
from minitrain.exceptions import ColumnError

__all__ = ["RangeSource", "Rows", "RowsSource", "StreamSource", "TableSource", "ranges"]

_BLOCKS_AT_LEAST = 8
_ROWS_AT_LEAST = 1024


def ranges(rows: int, size_bytes: int, number: int | None) -> Iterator[tuple[int, int]]:
    """Cut rows in memory into blocks: 8 or more, unless they would be tiny.

    Args:
        rows: How many there are.
        size_bytes: What all of them take.
        number: How many blocks to make; None: as their size asks for.
    """
    if number is None:
        target = max(1, DataContext.get_current().target_block_bytes // 8)
        number = max(_BLOCKS_AT_LEAST, -(-size_bytes // target))
        number = min(number, max(1, rows // _ROWS_AT_LEAST))
    number = max(1, min(number, rows))
    for index in range(number):
        if rows:
            yield rows * index // number, rows * (index + 1) // number


def _selected(schema: pa.Schema, columns: tuple[str, ...] | None, where: str) -> pa.Schema:
    if columns is None:
        return schema
    for name in columns:
        if name not in schema.names:
            raise ColumnError(name, schema.names, where)
    return pa.schema([schema.field(name) for name in columns])


# Numbers.


@dataclass(frozen=True, slots=True)
class RangeBlock(Block):
    """Consecutive integers."""

    start: int
    stop: int

    @property
    def name(self) -> str:  # type: ignore[override]
        """Which ones."""
        return f"range, from {self.start:,}"

    @property
    def rows(self) -> int:  # type: ignore[override]
        """How many."""
        return self.stop - self.start

    @property
    def size_bytes(self) -> int:  # type: ignore[override]
        """Eight bytes each."""
        return 8 * self.rows

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Compute them."""
        first = self.start + start
        last = self.stop if stop is None else min(self.stop, self.start + stop)
        step = max(1, DataContext.get_current().target_table_bytes // 8)
        for begin in range(first, last, step):
            yield pa.table({"id": np.arange(begin, min(begin + step, last), dtype=np.int64)})


@dataclass(frozen=True, kw_only=True, eq=False)
class RangeSource(Source):
    """The integers below a number."""

    lists_columns: ClassVar[bool] = True

    n: int
    number: int | None = None
    kind: str = "range"
    columns: tuple[str, ...] | None = None
    predicate: pc.Expression | None = None

    def blocks(self) -> Iterator[Block]:
        """List ranges of them."""
        for start, stop in ranges(self.n, 8 * self.n, self.number):
            yield RangeBlock(start, stop)

    def schema(self) -> pa.Schema:
        """Return the one column."""
        return pa.schema([("id", pa.int64())])

    def describe(self) -> str:
        """Return one line for a plan that prints itself."""
        return f"range {self.n:,}"


# Tables.


@dataclass(frozen=True, slots=True, eq=False)
class SliceBlock(Block):
    """Consecutive rows of a table in memory. It is pickled with these rows and no others."""

    table: pa.Table
    origin: str
    first: int

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restored_slice, (_written(self.table), self.origin, self.first))

    @property
    def name(self) -> str:  # type: ignore[override]
        """Where the rows came from."""
        return f"{self.origin}, from row {self.first:,}"

    @property
    def rows(self) -> int:  # type: ignore[override]
        """How many rows."""
        return int(self.table.num_rows)

    @property
    def size_bytes(self) -> int:  # type: ignore[override]
        """What they take."""
        return int(self.table.nbytes)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield slices: nothing is copied."""
        end = self.rows if stop is None else min(stop, self.rows)
        part = self.table.slice(start, max(0, end - start))
        yield from in_tables(part, DataContext.get_current().target_table_bytes)


def _written(table: pa.Table) -> pa.Buffer:
    """Return a table as bytes: pickle would take the memory that it is a slice of along."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _restored_slice(data: pa.Buffer, origin: str, first: int) -> SliceBlock:
    import minitrain.data.values  # noqa: F401 - registers types that the table may have

    return SliceBlock(pa.ipc.open_stream(data).read_all(), origin, first)


@dataclass(frozen=True, kw_only=True, eq=False)
class TableSource(Source):
    """A table in memory.

    Attributes:
        table: The table.
        number: How many blocks to make; None: as its size asks for.
    """

    can_select: ClassVar[bool] = True
    lists_columns: ClassVar[bool] = True

    kind: str
    table: pa.Table
    number: int | None = None
    columns: tuple[str, ...] | None = None
    predicate: pc.Expression | None = None

    def blocks(self) -> Iterator[Block]:
        """List slices of the table."""
        schema = self.schema()
        table = self.table if self.columns is None else self.table.select(list(schema.names))
        for start, stop in ranges(table.num_rows, self.table.nbytes, self.number):
            yield SliceBlock(table.slice(start, stop - start), self.kind, start)

    def schema(self) -> pa.Schema:
        """Return the table's columns."""
        return _selected(self.table.schema, self.columns, self.kind)

    def describe(self) -> str:
        """Return one line for a plan that prints itself."""
        return f"{self.kind} ({self.table.num_rows:,} rows)"


# What is read by number.


class Rows(ABC):
    """Rows elsewhere in memory, or behind another library, that are fetched by their numbers.

    Attributes:
        size_bytes: What all of them take; 0: that is not known.
    """

    size_bytes: int = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def table(self, start: int, stop: int) -> pa.Table:
        """Fetch some."""

    @property
    @abstractmethod
    def at_a_time(self) -> int:
        """How many to fetch for one table."""


@dataclass(frozen=True, slots=True, eq=False)
class RowsBlock(Block):
    """Consecutive rows, fetched when they are read."""

    source: Rows
    origin: str
    start: int
    stop: int

    @property
    def name(self) -> str:  # type: ignore[override]
        """Which rows."""
        return f"{self.origin}, from row {self.start:,}"

    @property
    def rows(self) -> int:  # type: ignore[override]
        """How many."""
        return self.stop - self.start

    @property
    def size_bytes(self) -> int | None:  # type: ignore[override]
        """A part of what all take."""
        return self.source.size_bytes * self.rows // max(1, len(self.source)) or None

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Fetch them."""
        first = self.start + start
        last = self.stop if stop is None else min(self.stop, self.start + stop)
        step = self.source.at_a_time
        for begin in range(first, last, step):
            yield self.source.table(begin, min(begin + step, last))


@dataclass(frozen=True, kw_only=True, eq=False)
class RowsSource(Source):
    """Rows that are fetched by their numbers."""

    kind: str
    items: Rows
    number: int | None = None
    columns: tuple[str, ...] | None = None
    predicate: pc.Expression | None = None

    def blocks(self) -> Iterator[Block]:
        """List ranges of numbers."""
        items = self.items
        number = self.number
        if number is None and not items.size_bytes:
            number = max(_BLOCKS_AT_LEAST, -(-len(items) // items.at_a_time))
        for start, stop in ranges(len(items), items.size_bytes, number):
            yield RowsBlock(items, self.kind, start, stop)

    def schema(self) -> pa.Schema:
        """Return the columns, from the first row."""
        return self.items.table(0, min(1, len(self.items))).schema

    def describe(self) -> str:
        """Return one line for a plan that prints itself."""
        return f"{self.kind} ({len(self.items):,} rows)"


# What can only be read from its beginning.


@dataclass(frozen=True, slots=True, eq=False)
class StreamBlock(Block):
    """Everything that an iterator yields, which is made anew each time it is read."""

    open: Callable[[], Iterator[pa.Table]]
    origin: str

    @property
    def name(self) -> str:  # type: ignore[override]
        """Where the rows come from."""
        return self.origin

    @property
    def rows(self) -> None:  # type: ignore[override]
        """Not known before they are counted."""
        return

    @property
    def size_bytes(self) -> None:  # type: ignore[override]
        """Not known."""
        return

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield rows; those before ``start`` are read and dropped."""
        yield from sliced((table for table in self.open() if table.num_rows), start, stop)


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamSource(Source):
    """Something that can be iterated over any number of times, in one block.

    Attributes:
        open: Begins an iteration.
    """

    kind: str
    open: Callable[[], Iterator[pa.Table]]
    columns: tuple[str, ...] | None = None
    predicate: pc.Expression | None = None

    def blocks(self) -> Iterator[Block]:
        """There is one."""
        yield StreamBlock(self.open, self.kind)

    def schema(self) -> pa.Schema:
        """Return the columns of the first rows."""
        return next((table.schema for table in self.open()), pa.schema([]))

    def describe(self) -> str:
        """Return one line for a plan that prints itself."""
        return f"{self.kind} (a stream)"
