"""Datasets from tables in memory that count how often they are read, and which columns."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pyarrow as pa

from minitrain.data.dataset import from_source
from minitrain.data.plans.block import Block, Source


@dataclass(frozen=True, eq=False)
class TableBlock(Block):
    table: pa.Table
    reads: list
    name: str = "a table"
    rows: int | None = None
    size_bytes: int | None = None

    def read(self, start=0, stop=None):
        self.reads.append(tuple(self.table.column_names))
        part = self.table.slice(start, None if stop is None else stop - start)
        if part.num_rows:
            yield part


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables(Source):
    """One block for each table. ``reads`` has the columns of each read of the first one."""

    can_select = True

    tables: tuple
    reads: list = field(default_factory=list)
    kind: str = "tables"
    columns: tuple | None = None
    predicate: object = None

    def blocks(self):
        for place, table in enumerate(self.tables):
            reads = self.reads if place == 0 else []
            chosen = table if self.columns is None else table.select(list(self.columns))
            yield TableBlock(chosen, reads, rows=table.num_rows)

    def schema(self):
        schema = self.tables[0].schema
        if self.columns is None:
            return schema
        return pa.schema([schema.field(name) for name in self.columns])

    def describe(self):
        return "tables"


def dataset(*tables, reads=None):
    """Return a dataset of tables, or of dicts of columns, one after the other."""
    tables = tuple(table if isinstance(table, pa.Table) else pa.table(table) for table in tables)
    return from_source(Tables(tables=tables, reads=[] if reads is None else reads))


def in_parts(table, *places):
    """Return a dataset of the rows of one table, cut at some places."""
    edges = [0, *sorted(places), table.num_rows]
    return dataset(*(table.slice(a, b - a) for a, b in itertools.pairwise(edges)))


def columns_of(ds):
    """Return all rows as a dict of lists."""
    tables = list(ds.iter_batches(batch_size=None, batch_format="pyarrow"))
    return pa.concat_tables(tables).to_pydict()
