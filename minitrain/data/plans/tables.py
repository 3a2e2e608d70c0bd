"""Iterators over Arrow tables, and what is done to them on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from minitrain.data.values import concat_tables

__all__ = ["in_tables", "joined", "rebatched", "sliced", "with_column"]


def sliced(tables: Iterator[pa.Table], start: int, stop: int | None) -> Iterator[pa.Table]:
    """Yield the rows from ``start`` up to ``stop``, and read no table behind them."""
    offset = 0
    if stop is not None and stop <= start:
        return
    for table in tables:
        first = max(start - offset, 0)
        last = table.num_rows if stop is None else min(table.num_rows, stop - offset)
        if first < last:
            yield table.slice(first, last - first)
        offset += table.num_rows
        if stop is not None and offset >= stop:
            return


def rebatched(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of ``size`` rows; the last may be shorter."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        start = 0
        while rows + table.num_rows - start >= size:
            part = table.slice(start, size - rows)
            start += part.num_rows
            yield concat_tables([*held, part])
            held, rows = [], 0
        if start < table.num_rows:
            held.append(table.slice(start))
            rows += table.num_rows - start
    if held:
        yield concat_tables(held)


def joined(tables: Iterable[pa.Table], target_bytes: int) -> Iterator[pa.Table]:
    """Yield the same rows, with small tables of the same columns joined to tables of a size.

    Those that are large enough are not copied.
    """
    held: list[pa.Table] = []
    held_bytes = 0
    for table in tables:
        size_bytes = table.nbytes
        if held and (size_bytes >= target_bytes or not table.schema.equals(held[0].schema)):
            yield _as_one(held)
            held, held_bytes = [], 0
        held.append(table)
        held_bytes += size_bytes
        if held_bytes >= target_bytes:
            yield _as_one(held)
            held, held_bytes = [], 0
    if held:
        yield _as_one(held)


def _as_one(tables: list[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()


def in_tables(table: pa.Table, target_bytes: int) -> Iterator[pa.Table]:
    """Yield a table's rows in tables of about a size in bytes, without copying them."""
    if not table.num_rows:
        return
    rows = max(1, int(table.num_rows * target_bytes / max(table.nbytes, 1)))
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def with_column(table: pa.Table, name: str, column: pa.ChunkedArray | pa.Array) -> pa.Table:
    """Return a table with one more column, or with another one in the place of its namesake."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)
