"""Rows in groups: aggregations of each, and functions that are called with each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from minitrain.data import values
from minitrain.data.aggregate import (
    AggregateFn,
    Count,
    Max,
    Mean,
    Min,
    Std,
    Sum,
    aggregated,
    check_aggregations,
    columns_of,
)
from minitrain.data.consume import On, aggregations_on
from minitrain.data.context import DataContext
from minitrain.data.dataset import Dataset
from minitrain.data.plans.block import Block
from minitrain.data.plans.columns import check_plan_columns
from minitrain.data.plans.functions import BatchFormat, FunctionStep, tables_from, user_function
from minitrain.data.plans.groups import Groups
from minitrain.data.plans.mapped import HostTable, blocks_of
from minitrain.data.plans.plan import Apply, Node, Whole, host_table, tables, written
from minitrain.data.plans.sorting import Sorted
from minitrain.data.plans.steps import Select
from minitrain.data.processes.shared import SharedTable

__all__ = ["GroupedData"]


class GroupedData:
    """Rows of a dataset in groups; the result of :meth:`minitrain.data.Dataset.groupby`.

    Rows with a null among the keys are groups, too.

    Args:
        plan: The rows.
        keys: The columns whose values make a group; none: all rows are one.

    Raises:
        ColumnError: The dataset is known not to have such a column.
    """

    def __init__(self, plan: Node, keys: tuple[str, ...]) -> None:
        self._plan = plan
        self._keys = keys
        check_plan_columns(keys, plan, self._name)

    def __repr__(self) -> str:
        return f"{Dataset(self._plan)!r}.{self._name}"

    @property
    def _name(self) -> str:
        return f"groupby({', '.join(self._keys)})"

    # ------------------------------------------------------------------ aggregations
    def aggregate(self, *aggs: AggregateFn) -> Dataset:
        """Compute aggregations of each group, in one pass that holds a row per group.

        Returns:
            A row per group, sorted by its keys, with the keys and a column for each aggregation,
            such as ``mean(a)``.
        """
        check_aggregations(aggs, self._keys)
        return self._aggregated(aggs)

    def _aggregated(self, aggs: tuple[AggregateFn, ...]) -> Dataset:
        columns = columns_of(aggs, self._keys)
        check_plan_columns(columns, self._plan, self._name)
        plan = Apply(self._plan, Select(tuple(columns))) if columns else self._plan
        names = ", ".join(function.name for function in aggs)
        text = f"{self._name}.aggregate({names})"
        return Dataset(_Aggregated(plan, text, _Aggregation(self._keys, aggs)))

    def count(self) -> Dataset:
        """Count the rows of each group, in a column ``count()``."""
        return self.aggregate(Count())

    def sum(self, on: On = None, ignore_nulls: bool = True) -> Dataset:
        """Add up columns in each group.

        Args:
            on: The column, or several; None: all but the keys.
            ignore_nulls: Leave nulls out; otherwise one null makes the sum null.
        """
        return self._on(Sum, on, ignore_nulls=ignore_nulls)

    def min(self, on: On = None, ignore_nulls: bool = True) -> Dataset:
        """Find the smallest value in each group; arguments are those of :meth:`sum`."""
        return self._on(Min, on, ignore_nulls=ignore_nulls)

    def max(self, on: On = None, ignore_nulls: bool = True) -> Dataset:
        """Find the largest value in each group; arguments are those of :meth:`sum`."""
        return self._on(Max, on, ignore_nulls=ignore_nulls)

    def mean(self, on: On = None, ignore_nulls: bool = True) -> Dataset:
        """Compute the mean in each group; arguments are those of :meth:`sum`."""
        return self._on(Mean, on, ignore_nulls=ignore_nulls)

    def std(self, on: On = None, ddof: int = 1, ignore_nulls: bool = True) -> Dataset:
        """Compute the standard deviation in each group.

        Args:
            on: The column, or several; None: all but the keys.
            ddof: The divisor is the number of values less this.
            ignore_nulls: Leave nulls out; otherwise one null makes it null.
        """
        return self._on(Std, on, ignore_nulls=ignore_nulls, ddof=ddof)

    def _on(self, kind: type[AggregateFn], on: On, **options: Any) -> Dataset:
        schema = Dataset(self._plan).schema
        aggs = aggregations_on(kind, on, schema, self._keys, **options)
        if not aggs and schema() is None:  # there are no rows
            return self._aggregated(())
        return self.aggregate(*aggs)

    # ------------------------------------------------------------------ functions
    def map_groups(
        self,
        fn: Callable[..., Any],
        *,
        batch_format: BatchFormat = "default",
        fn_args: Iterable[Any] | None = None,
        fn_kwargs: Mapping[str, Any] | None = None,
        fn_constructor_args: Iterable[Any] | None = None,
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        concurrency: int | tuple[int, int] | None = None,
    ) -> Dataset:
        """Call a function with all rows of each group, in the order of the keys.

        The rows are sorted by the keys first, in shared memory or a spill file; those of one group
        have to fit into memory. Within a group they are in their order.

        Args:
            fn: Takes a batch and returns one, of any number of rows, or yields some; or a class,
                of which each process makes one object and calls it.
            batch_format: What it is given, as in :meth:`minitrain.data.Dataset.map_batches`, like
                the other arguments.
            fn_args: Further arguments of each call.
            fn_kwargs: Likewise.
            fn_constructor_args: Arguments of the class.
            fn_constructor_kwargs: Likewise.
            concurrency: Call it in so many processes of this host.
        """
        values.check_format(batch_format)
        function = user_function(
            fn, fn_args, fn_kwargs, fn_constructor_args, fn_constructor_kwargs, concurrency
        )
        by = Sorted(tuple((name, False) for name in self._keys))
        grouped = _Grouped(self._plan, self._name, by, self._keys)
        step = _MapGroups(function, "map_groups", self._keys, batch_format)
        return Dataset(Apply(grouped, step))


# ---------------------------------------------------------------------- aggregations
@dataclass(frozen=True)
class _Aggregation:
    keys: tuple[str, ...]
    functions: tuple[AggregateFn, ...]

    def __call__(self, parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
        made = aggregated(parts, self.keys, self.functions)
        if made is not None:
            yield made


@dataclass(frozen=True, eq=False)
class _Aggregated(Whole):
    """What is computed from all rows, but table by table: they are kept nowhere."""

    def blocks(self, epoch: int) -> Iterator[Block]:  # noqa: ARG002
        """Compute it, and list the blocks of the result."""
        return iter(blocks_of(HostTable(self._made(), self._made), self.text))

    def _made(self) -> SharedTable:
        return written(self.function(tables(self.child)), self.text)


# ---------------------------------------------------------------------- functions
@dataclass(frozen=True, eq=False)
class _Grouped(Whole):
    """Sorted rows in blocks of whole groups."""

    keys: tuple[str, ...]

    def blocks(self, epoch: int) -> Iterator[Block]:  # noqa: ARG002
        """Sort the rows, and list the blocks."""
        shared = host_table(self if self.keys else self.child)
        if not shared.rows:
            return
        edges = _edges(shared.table(), self.keys)
        target = DataContext.get_current().target_table_bytes
        rows = max(1, int(shared.rows * target / max(shared.size_bytes, 1)))
        start = 0
        while start < shared.rows:
            stop = int(edges[np.searchsorted(edges, min(start + rows, shared.rows))])
            yield _GroupsBlock(shared, start, stop, self.text)
            start = stop


@dataclass(frozen=True, slots=True)
class _GroupsBlock(Block):
    """The rows of some groups, which are read as one table."""

    shared: HostTable
    start: int
    stop: int
    origin: str

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.origin}, from row {self.start:,}"

    @property
    def rows(self) -> int:  # type: ignore[override]
        return self.stop - self.start

    @property
    def size_bytes(self) -> int:  # type: ignore[override]
        return self.shared.size_bytes * self.rows // max(self.shared.rows, 1)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        last = self.stop if stop is None else min(self.stop, self.start + stop)
        if self.start + start < last:
            yield self.shared.table().slice(self.start + start, last - self.start - start)


@dataclass(frozen=True, eq=False)
class _MapGroups(FunctionStep):
    """Calls a function on each group; what comes in are whole groups, one after the other."""

    keys: tuple[str, ...]
    batch_format: BatchFormat
    keeps_rows: bool = field(default=False, init=False)

    @property
    def batch_rows(self) -> int | None:
        """As they come."""
        return None

    def on_batch(self, table: pa.Table) -> Iterator[pa.Table]:
        """Call the function on each group."""
        start = 0
        for stop in _edges(table, self.keys)[1:]:
            group = table.slice(start, stop - start)
            start = stop
            try:
                returned = self.function.call(values.batch_from_table(group, self.batch_format))
                yield from tables_from(returned)
            except Exception as error:
                error.add_note(f"in the group {group.select(self.keys).slice(0, 1).to_pylist()[0]}")
                raise


def _edges(table: pa.Table, keys: tuple[str, ...]) -> np.ndarray:
    """Return where groups of sorted rows begin, and at last the number of rows."""
    ids = Groups.of(table, keys).ids
    return np.concatenate([[0], np.flatnonzero(np.diff(ids)) + 1, [len(ids)]])
