"""Datasets of a few rows in several blocks, as a reader of files would list them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.dataset import Dataset, from_source
from minitrain.data.plans.block import Block, Source


@dataclass(frozen=True)
class Slice(Block):
    """Some rows of a table; who counts them must read them."""

    table: pa.Table
    name: str
    counted: bool

    @property
    def rows(self) -> int | None:
        return self.table.num_rows if self.counted else None

    @property
    def size_bytes(self) -> int:
        return self.table.nbytes

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        stop = self.table.num_rows if stop is None else stop
        for first in range(start, stop, 100):
            yield self.table.slice(first, min(100, stop - first))


@dataclass(frozen=True)
class Slices(Source):
    """A table in pieces."""

    tables: tuple[pa.Table, ...]
    counted: bool = True
    kind: str = "slices"
    columns: tuple[str, ...] | None = None
    predicate: pc.Expression | None = None

    def blocks(self) -> Iterator[Block]:
        for number, table in enumerate(self.tables):
            yield Slice(table, f"slice {number}", self.counted)

    def schema(self) -> pa.Schema:
        return self.tables[0].schema

    def describe(self) -> str:
        return f"{len(self.tables)} slices"


def dataset_of(table: pa.Table, pieces: int = 3, *, counted: bool = True) -> Dataset:
    """Return a dataset with these rows in so many blocks."""
    rows = table.num_rows
    edges = [rows * piece // pieces for piece in range(pieces + 1)]
    return dataset_of_slices(
        [table.slice(edges[i], edges[i + 1] - edges[i]) for i in range(pieces)], counted=counted
    )


def dataset_of_slices(tables: Sequence[pa.Table], *, counted: bool = True) -> Dataset:
    """Return a dataset of which each table is a block."""
    return from_source(Slices(tuple(tables), counted))
