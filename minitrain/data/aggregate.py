"""Aggregations: sums, means and the like, of a dataset or of each of its groups, in one pass.

Each table gives partial results, a row per group; those of many tables are merged. What is held is
a row per group, and for :class:`Quantile` and :class:`Unique` the values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from minitrain.data.plans.groups import Groups, grouped_by, key_names, one_chunk
from minitrain.data.plans.sorting import comparable
from minitrain.data.plans.steps import check_columns
from minitrain.data.values import concat_tables
from minitrain.exceptions import ConfigurationError, DataError

__all__ = [
    "AbsMax",
    "AggregateFn",
    "Count",
    "Max",
    "Mean",
    "Min",
    "Quantile",
    "Std",
    "Sum",
    "Unique",
    "aggregated",
    "check_aggregations",
    "columns_of",
]

_MERGED_ROWS = 1 << 16
"""Partial results are merged when there are so many of them, or twice as many as there were."""


@dataclass(frozen=True)
class AggregateFn(ABC):
    """What is computed from the values of a column, for all rows or for each group.

    Attributes:
        on: The column.
        ignore_nulls: Leave nulls out; otherwise one null makes the result null.
        alias_name: What the result is called; None: after the function and the column.
    """

    on: str | None
    ignore_nulls: bool = True
    alias_name: str | None = None

    @property
    def name(self) -> str:
        """What the result is called: ``mean(a)``."""
        return self.alias_name or f"{self._function}({self.on or ''})"

    @property
    @abstractmethod
    def _function(self) -> str:
        """The function's name in results."""

    @abstractmethod
    def partial(self, groups: Groups, values: pa.ChunkedArray) -> tuple[pa.Array, ...]:
        """Return what is kept of a table: columns with a row per group."""

    @abstractmethod
    def merged(self, groups: Groups, parts: Sequence[pa.Array]) -> tuple[pa.Array, ...]:
        """Return the same of several tables."""

    def finished(self, parts: Sequence[pa.Array]) -> pa.Array:
        """Return the results."""
        return parts[0]

    def of_nothing(self) -> Any:
        """Return the result where there are no rows."""
        return None

    @property
    def _skipping(self) -> pc.ScalarAggregateOptions:
        return pc.ScalarAggregateOptions(skip_nulls=self.ignore_nulls, min_count=1)


@dataclass(frozen=True)
class Count(AggregateFn):
    """The number of rows, or with ``ignore_nulls`` of values that are not null."""

    on: str | None = None
    ignore_nulls: bool = False

    @property
    def _function(self) -> str:
        return "count"

    def partial(self, groups: Groups, values: pa.ChunkedArray) -> tuple[pa.Array, ...]:
        """Count."""
        mode = "only_valid" if self.ignore_nulls else "all"
        return (groups.aggregate(values, "count", pc.CountOptions(mode)),)

    def merged(self, groups: Groups, parts: Sequence[pa.Array]) -> tuple[pa.Array, ...]:
        """Add counts."""
        return (groups.aggregate(parts[0], "sum"),)

    def of_nothing(self) -> Any:
        """Return 0."""
        return 0


@dataclass(frozen=True)
class _Simple(AggregateFn):
    """Functions of which that of all rows is that of those of the parts."""

    def partial(self, groups: Groups, values: pa.ChunkedArray) -> tuple[pa.Array, ...]:
        return (groups.aggregate(values, self._function, self._skipping),)

    def merged(self, groups: Groups, parts: Sequence[pa.Array]) -> tuple[pa.Array, ...]:
        return self.partial(groups, pa.chunked_array([parts[0]]))


@dataclass(frozen=True)
class Sum(AggregateFn):
    """The sum, exact for integers and decimals.

    Where 64 bits are too few for integers, or 38 digits for decimals, it is a wider decimal.
    """

    @property
    def _function(self) -> str:
        return "sum"

    def partial(self, groups: Groups, values: pa.ChunkedArray) -> tuple[pa.Array, ...]:
        """Add values."""
        return (_sums(groups, _with_room(values), self._skipping),)

    def merged(self, groups: Groups, parts: Sequence[pa.Array]) -> tuple[pa.Array, ...]:
        """Add sums."""
        return (_sums(groups, parts[0], self._skipping),)

    def finished(self, parts: Sequence[pa.Array]) -> pa.Array:
        """Return the type that Arrow has for such sums, if they fit."""
        (sums,) = parts
        kind = sums.type
        if kind == _WIDE_INTEGER:
            return _narrowed(sums, [pa.int64(), pa.uint64()])
        if pat.is_decimal256(kind):
            return _narrowed(sums, [pa.decimal128(38, kind.scale)])
        return sums


@dataclass(frozen=True)
class Min(_Simple):
    """The smallest value; NaN only if there is no other."""

    @property
    def _function(self) -> str:
        return "min"


@dataclass(frozen=True)
class Max(_Simple):
    """The largest value; NaN only if there is no other."""

    @property
    def _function(self) -> str:
        return "max"


@dataclass(frozen=True)
class AbsMax(AggregateFn):
    """The largest absolute value."""

    @property
    def _function(self) -> str:
        return "abs_max"

    def partial(self, groups: Groups, values: pa.ChunkedArray) -> tuple[pa.Array, ...]:
        """Return the largest."""
        if pat.is_signed_integer(values.type):
            values = values.cast(pa.int64())  # 128, for which there is no place beside -128
        return (groups.aggregate(pc.abs_checked(values), "max", self._skipping),)

    def merged(self, groups: Groups, parts: Sequence[pa.Array]) -> tuple[pa.Array, ...]:
        """Return the largest."""
        return (groups.aggregate(parts[0], "max", self._skipping),)


@dataclass(frozen=True)
class Mean(AggregateFn):
    """The mean."""

    @property
    def _function(self) -> str:
        return "mean"

    def partial(self, groups: Groups, values: pa.ChunkedArray) -> tuple[pa.Array, ...]:
        """Return sums and counts."""
        sums = _sums(groups, _with_room(values), self._skipping)
        return sums, groups.aggregate(values, "count")

    def merged(self, groups: Groups, parts: Sequence[pa.Array]) -> tuple[pa.Array, ...]:
        """Add both."""
        sums, counts = parts
        return _sums(groups, sums, self._skipping), groups.aggregate(counts, "sum")

    def finished(self, parts: Sequence[pa.Array]) -> pa.Array:
        """Divide."""
        sums, counts = parts
        return pc.divide(sums.cast(pa.float64(), safe=False), counts.cast(pa.float64()))


@dataclass(frozen=True)
class Std(AggregateFn):
    """The standard deviation.

    Attributes:
        ddof: The divisor is the number of values less this.
    """

    ddof: int = 1

    @property
    def _function(self) -> str:
        return "std"

    def partial(self, groups: Groups, values: pa.ChunkedArray) -> tuple[pa.Array, ...]:
        """Return counts, means and sums of squares of the distances from them."""
        if pat.is_null(values.type) or pat.is_decimal(values.type):
            values = values.cast(pa.float64())  # the mean of decimals is cut to their digits
        skip = pc.VarianceOptions(ddof=0, skip_nulls=self.ignore_nulls, min_count=1)
        mode = "only_valid" if self.ignore_nulls else "all"
        counts = groups.aggregate(values, "count", pc.CountOptions(mode))
        means = groups.aggregate(values, "mean", self._skipping)
        variances = groups.aggregate(values, "variance", skip)
        return counts, means.cast(pa.float64(), safe=False), pc.multiply(variances, counts)

    def merged(self, groups: Groups, parts: Sequence[pa.Array]) -> tuple[pa.Array, ...]:
        """Merge them as Chan, Golub and LeVeque do: no square of a large number is taken."""
        counts, means, squares = (_floats(part) for part in parts)
        empty = counts == 0
        absent = np.isin(np.arange(len(groups)), groups.ids[~empty & _nulls(parts[1])])
        means, squares = np.where(empty, 0.0, means), np.where(empty, 0.0, squares)
        total = groups.sum(counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            # Weights are at most 1: no product of a count and a mean can overflow.
            mean = groups.sum(means * (counts / total[groups.ids]).clip(0, 1))
            distances = np.where(empty, 0.0, means - mean[groups.ids])
            square = groups.sum(squares + counts * distances**2)
        absent |= total == 0
        return (
            pa.array(total.astype(np.int64)),
            pa.array(mean, mask=absent),
            pa.array(square, mask=absent),
        )

    def finished(self, parts: Sequence[pa.Array]) -> pa.Array:
        """Return the roots; NaN for too few values."""
        counts, _, squares = parts
        with np.errstate(invalid="ignore", divide="ignore"):
            left = (_floats(counts) - self.ddof).clip(0)
            deviation = np.sqrt(np.where(left > 0, _floats(squares) / left, np.nan))
        return pa.array(deviation, mask=_nulls(squares))


@dataclass(frozen=True)
class _Listing(AggregateFn):
    """Functions that have to see all values, or all that differ; nulls are left out at the end."""

    @abstractmethod
    def _listed(self, groups: Groups, values: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Return a list for each group; none is empty."""

    def partial(self, groups: Groups, values: pa.ChunkedArray) -> tuple[pa.Array, ...]:
        return (self._listed(groups, comparable(values)),)

    def merged(self, groups: Groups, parts: Sequence[pa.Array]) -> tuple[pa.Array, ...]:
        parents = pc.list_parent_indices(parts[0]).to_numpy()
        each = Groups(groups.keys, groups.ids[parents])
        return (self._listed(each, pc.list_flatten(parts[0])),)

    def finished(self, parts: Sequence[pa.Array]) -> pa.Array:
        (lists,) = parts
        if not self.ignore_nulls:
            return lists
        values, parents = pc.list_flatten(lists), pc.list_parent_indices(lists)
        valid = pc.is_valid(values)
        lengths = np.bincount(parents.filter(valid).to_numpy(), minlength=len(lists))
        offsets = pa.array(np.concatenate([[0], lengths.cumsum()]), pa.int32())
        return pa.ListArray.from_arrays(offsets, values.filter(valid))


@dataclass(frozen=True)
class Quantile(_Listing):
    """A quantile, in proportion where it lies between two values; holds all of the column.

    Attributes:
        q: Which: 0.5 is the median.
    """

    q: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise ConfigurationError(f"Quantile(q={self.q!r}): must be between 0 and 1")

    @property
    def _function(self) -> str:
        return "quantile"

    def partial(self, groups: Groups, values: pa.ChunkedArray) -> tuple[pa.Array, ...]:
        """Return the values, of a type that has quantiles."""
        if not pat.is_null(values.type):
            # Only to have Arrow refuse a type now, while its column is known by name.
            pc.quantile(comparable(values.slice(0, 0)), q=self.q)
        return super().partial(groups, values)

    def _listed(self, groups: Groups, values: pa.Array | pa.ChunkedArray) -> pa.Array:
        return groups.aggregate(values, "list")

    def finished(self, parts: Sequence[pa.Array]) -> pa.Array:
        """Sort the values of each group."""
        return pa.array([self._of(values) for values in super().finished(parts)], pa.float64())

    def _of(self, values: pa.ListScalar) -> float | None:
        if not len(values) or values.values.null_count:
            return None
        (quantile,) = pc.quantile(values.values, q=self.q).to_pylist()
        return None if quantile is None else float(quantile)


@dataclass(frozen=True)
class Unique(_Listing):
    """A list of the values that differ, in order of appearance."""

    @property
    def _function(self) -> str:
        return "unique"

    def _listed(self, groups: Groups, values: pa.Array | pa.ChunkedArray) -> pa.Array:
        pairs = Groups.of(pa.table({"id": groups.ids, "value": values}), ["id", "value"]).keys
        once = Groups(groups.keys, pairs.column("id").to_numpy())
        return once.aggregate(pairs.column("value"), "list")

    def of_nothing(self) -> Any:
        """Return no values."""
        return []


# ---------------------------------------------------------------------- over many tables
def aggregated(
    tables: Iterable[pa.Table], keys: Sequence[str], functions: Sequence[AggregateFn]
) -> pa.Table | None:
    """Aggregate each group of rows.

    Args:
        tables: The rows.
        keys: The columns whose values make a group; none: all rows are one.
        functions: What to compute.

    Returns:
        A row per group, sorted by its keys; first the keys' columns, then one per function. None
        if there are no rows.
    """
    held: list[pa.Table] = []
    rows = threshold = 0
    for table in tables:
        held.append(_partial(table, keys, functions))
        rows += held[-1].num_rows
        if rows > max(threshold, _MERGED_ROWS):
            held = [_merged(held, keys, functions)]
            rows = held[0].num_rows
            threshold = 2 * rows
    if not held:
        return None
    return _finished(_merged(held, keys, functions), keys, functions)


def check_aggregations(functions: Sequence[AggregateFn], keys: Sequence[str] = ()) -> None:
    """Refuse what is no aggregation, one of no column, and two results of one name.

    Raises:
        TypeError: One is no :class:`AggregateFn`.
        ConfigurationError: There is none, one needs a column and has none, or two have the same
            name, or that of a key.
    """
    if not functions:
        raise ConfigurationError("aggregate(): give at least one aggregation, such as Mean('a')")
    for function in functions:
        if not isinstance(function, AggregateFn):
            raise TypeError(f"aggregate: {function!r} is no AggregateFn, such as Mean('a')")
        if function.on is None and not isinstance(function, Count):
            raise ConfigurationError(f"aggregate: {function.name}: name a column")
        if function.name in keys:
            raise ConfigurationError(
                f"aggregate: {function.name!r} is a key and a result; use alias_name"
            )
    names = [function.name for function in functions]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigurationError(f"aggregate: two results are called {twice[0]!r}; use alias_name")


def columns_of(functions: Sequence[AggregateFn], keys: Sequence[str] = ()) -> list[str]:
    """Return the columns that have to be read."""
    named = [function.on for function in functions if function.on is not None]
    return list(dict.fromkeys([*keys, *named]))


def _partial(table: pa.Table, keys: Sequence[str], functions: Sequence[AggregateFn]) -> pa.Table:
    names = ", ".join(function.name for function in functions)
    check_columns(columns_of(functions, keys), table.column_names, names)
    groups = grouped_by(table, keys, names)
    columns = dict(zip(key_names(len(keys)), groups.keys.columns, strict=True))
    for number, function in enumerate(functions):
        values: Any = groups.ids if function.on is None else table.column(function.on)
        with _computing(function, values):
            parts = function.partial(groups, values)
        columns |= {f"{number}.{index}": part for index, part in enumerate(parts)}
    return pa.table(columns)


@contextmanager
def _computing(function: AggregateFn, values: Any) -> Iterator[None]:
    """Say what cannot be computed of which values."""
    try:
        yield
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{function.name} cannot be computed: column {function.on!r} is {values.type}"
        ) from error


def _merged(
    held: list[pa.Table], keys: Sequence[str], functions: Sequence[AggregateFn]
) -> pa.Table:
    if len(held) == 1:
        return held[0]
    table = concat_tables(held)
    named = key_names(len(keys))
    names = ", ".join(function.name for function in functions)
    groups = grouped_by(table.select(named).rename_columns(list(keys)), keys, names)
    columns = dict(zip(named, groups.keys.columns, strict=True))
    for number, function in enumerate(functions):
        parts = _parts(table, number)
        with _computing(function, parts[0]):
            merged = function.merged(groups, parts)
        columns |= {f"{number}.{index}": part for index, part in enumerate(merged)}
    return pa.table(columns)


def _finished(table: pa.Table, keys: Sequence[str], functions: Sequence[AggregateFn]) -> pa.Table:
    if keys:
        table = table.sort_by([(name, "ascending") for name in key_names(len(keys))])
    columns = dict(zip(keys, table.select(key_names(len(keys))).columns, strict=True))
    for number, function in enumerate(functions):
        columns[function.name] = function.finished(_parts(table, number))
    return pa.table(columns)


def _parts(table: pa.Table, number: int) -> list[pa.Array]:
    """Return what is kept of one function."""
    return [
        one_chunk(column)
        for name, column in zip(table.column_names, table.columns, strict=True)
        if name.startswith(f"{number}.")
    ]


# ---------------------------------------------------------------------- sums
_ROW_DIGITS = 19
"""No dataset has more than 10**19 rows."""
_MOST_DIGITS = 76
_WIDE_INTEGER = pa.decimal128(38, 0)
"""Of sums of integers, when 64 bits may be too few for them."""


def _sums(groups: Groups, values: Any, options: pc.ScalarAggregateOptions) -> pa.Array:
    """Return the sum of each group's numbers, or sums; Arrow would let large ones wrap around."""
    if pat.is_integer(values.type) and not _sum_fits(values):
        values = values.cast(_WIDE_INTEGER)
    sums = groups.aggregate(values, "sum", options)
    # Arrow gives sums of decimals the most digits, which leaves no room for finer ones beside them.
    return sums.cast(values.type) if pat.is_decimal(values.type) else sums


def _sum_fits(integers: pa.ChunkedArray | pa.Array) -> bool:
    """Return whether 64 bits are enough for the sum of any of the integers."""
    bounds = pc.min_max(integers).as_py()
    largest = max(abs(bounds["min"] or 0), abs(bounds["max"] or 0))
    return bool(largest * len(integers) < 1 << 63)


def _with_room(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return decimals with room for their sum; they are wider than any integer is made."""
    kind = values.type
    if not pat.is_decimal(kind):
        return values
    digits = min(kind.precision + _ROW_DIGITS, _MOST_DIGITS)
    return values.cast(pa.decimal256(digits, kind.scale))


def _narrowed(sums: pa.Array, kinds: Sequence[pa.DataType]) -> pa.Array:
    """Return the sums as the first of these types that holds all of them, or as they are."""
    for kind in kinds:
        with suppress(pa.ArrowInvalid):
            return sums.cast(kind)
    return sums


def _floats(array: pa.Array) -> np.ndarray:
    floats: np.ndarray = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return floats


def _nulls(array: pa.Array) -> np.ndarray:
    nulls: np.ndarray = array.is_null().to_numpy(zero_copy_only=False)
    return nulls
