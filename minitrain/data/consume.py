"""What is computed of all rows of a dataset: sums and the like, frames and tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self

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
    Unique,
    aggregated,
    check_aggregations,
    columns_of,
)
from minitrain.data.plans.functions import check_count
from minitrain.data.plans.steps import Select, Step, names_of
from minitrain.data.values import concat_tables

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Consumes", "aggregations_on"]

On = str | Sequence[str] | None


class Consumes(ABC):
    """The methods of a dataset that compute something of its rows."""

    @abstractmethod
    def _tables(self) -> Generator[pa.Table, None, None]:
        """Yield all rows of the first epoch."""

    @abstractmethod
    def schema(self) -> pa.Schema | None:
        """Return the columns and their types; None if there are no rows."""

    @abstractmethod
    def _then(self, step: Step) -> Self:
        """Return another dataset: this one's rows, with something done to them."""

    # ------------------------------------------------------------------ aggregations
    def aggregate(self, *aggs: AggregateFn) -> dict[str, Any]:
        """Compute aggregations of all rows, in one pass.

        Returns:
            A value for each: ``{"mean(a)": 2.0}``.

        Example:
            >>> import minitrain.data
            >>> from minitrain.data import Max, Mean
            >>> minitrain.data.range(5).aggregate(Max("id"), Mean("id"))
            {'max(id)': 4, 'mean(id)': 2.0}
        """
        check_aggregations(aggs)
        names = ", ".join(function.name for function in aggs)
        columns = tuple(columns_of(aggs))
        dataset = self._then(Select(columns, names)) if columns else self
        with closing(dataset._tables()) as tables:  # noqa: SLF001 - of this class
            made = aggregated(tables, (), aggs)
        if made is None:
            return {function.name: function.of_nothing() for function in aggs}
        (row,) = made.to_pylist()
        return dict(row)

    def unique(self, column: str) -> list[Any]:
        """Return the values of a column that differ, in order of appearance."""
        names_of("unique", [column])
        unique: list[Any] = self.aggregate(Unique(column, ignore_nulls=False))[f"unique({column})"]
        return unique

    def sum(self, on: On = None, ignore_nulls: bool = True) -> Any:
        """Return the sum of a column.

        Args:
            on: The column, or several; None: all.
            ignore_nulls: Leave nulls out; otherwise one null makes the sum None.

        Returns:
            For one column its sum, for several a dict: ``{"sum(a)": 1, "sum(b)": 2}``. None where
            there are no rows.
        """
        return self._on(Sum, on, ignore_nulls=ignore_nulls)

    def min(self, on: On = None, ignore_nulls: bool = True) -> Any:
        """Return the smallest value of a column; arguments are those of :meth:`sum`."""
        return self._on(Min, on, ignore_nulls=ignore_nulls)

    def max(self, on: On = None, ignore_nulls: bool = True) -> Any:
        """Return the largest value of a column; arguments are those of :meth:`sum`."""
        return self._on(Max, on, ignore_nulls=ignore_nulls)

    def mean(self, on: On = None, ignore_nulls: bool = True) -> Any:
        """Return the mean of a column; arguments are those of :meth:`sum`."""
        return self._on(Mean, on, ignore_nulls=ignore_nulls)

    def std(self, on: On = None, ddof: int = 1, ignore_nulls: bool = True) -> Any:
        """Return the standard deviation of a column; other arguments are those of :meth:`sum`.

        Args:
            on: The column, or several; None: all.
            ddof: The divisor is the number of values less this.
            ignore_nulls: Leave nulls out; otherwise one null makes it None.
        """
        return self._on(Std, on, ignore_nulls=ignore_nulls, ddof=ddof)

    def _on(self, kind: type[AggregateFn], on: On, **options: Any) -> Any:
        functions = aggregations_on(kind, on, self.schema, **options)
        results = self.aggregate(*functions) if functions else {}
        if len(results) == 1:
            return next(iter(results.values()))
        return results or None

    def summary(self) -> pd.DataFrame:
        """Return count, mean, standard deviation, smallest and largest value of numeric columns.

        All of them are computed in one pass.
        """
        import pandas as pd

        schema = self.schema()
        names = [] if schema is None else [field.name for field in schema if _is_number(field.type)]
        kinds: tuple[type[AggregateFn], ...] = (Mean, Std, Min, Max)
        functions = [kind(name) for name in names for kind in kinds]
        functions += [Count(name, ignore_nulls=True) for name in names]
        results = self.aggregate(*functions) if functions else {}
        rows = ("count", "mean", "std", "min", "max")
        return pd.DataFrame(
            {name: [results[f"{row}({name})"] for row in rows] for name in names}, index=list(rows)
        )

    # ------------------------------------------------------------------ everything at once
    def to_arrow(self, limit: int | None = None) -> pa.Table:
        """Return all rows as one table in memory.

        Args:
            limit: So many rows at most are fine.

        Raises:
            ValueError: There are more.
        """
        return self._all("to_arrow", limit)

    def _all(self, what: str, limit: int | None) -> pa.Table:
        if limit is not None:
            check_count(f"{what}(limit)", limit, lowest=0)
        held: list[pa.Table] = []
        rows = 0
        with closing(self._tables()) as tables:
            for table in tables:
                held.append(table)
                rows += table.num_rows
                if limit is not None and rows > limit:
                    raise ValueError(
                        f"the dataset has more than {limit:,} rows; raise the limit, or take "
                        "fewer with limit()"
                    )
        if held:
            return concat_tables(held)
        return (self.schema() or pa.schema([])).empty_table()

    def to_pandas(self, limit: int | None = None) -> pd.DataFrame:
        """Return all rows as a frame in memory; arguments are those of :meth:`to_arrow`."""
        return values.pandas_from_table(self._all("to_pandas", limit))

    def size_bytes(self) -> int:
        """Return how much memory all rows take as Arrow tables; they are read for it."""
        with closing(self._tables()) as tables:
            return sum(table.nbytes for table in tables)


def aggregations_on(
    kind: type[AggregateFn], on: On, schema: Any, but: Sequence[str] = (), **options: Any
) -> list[AggregateFn]:
    """Return an aggregation for each column.

    Args:
        kind: Its class.
        on: The columns; None: all.
        schema: Called for the columns there are.
        but: Columns that are left out of all.
        options: Further arguments of the class.
    """
    names: Sequence[str]
    if on is not None:
        names = names_of(kind.__name__.lower(), on)
    else:
        columns = schema()
        names = [] if columns is None else [name for name in columns.names if name not in but]
    return [kind(name, **options) for name in names]


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )
