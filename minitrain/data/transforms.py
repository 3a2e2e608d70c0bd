"""What can be done to a dataset lazily: each method returns another dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow.compute as pc

from minitrain.data.plans.functions import (
    AddColumn,
    BatchFormat,
    FilterRows,
    FlatMap,
    MapBatches,
    MapRows,
    check_count,
    check_seed,
    user_function,
)
from minitrain.data.plans.plan import (
    Apply,
    Limit,
    Node,
    Repartition,
    ShuffleBlocks,
    ShuffleRows,
    Union,
    Whole,
    Zip,
)
from minitrain.data.plans.sorting import Sorted
from minitrain.data.plans.steps import (
    Drop,
    Filter,
    Rename,
    Sample,
    Select,
    Step,
    WithColumn,
    names_of,
)
from minitrain.data.values import check_format
from minitrain.exceptions import ConfigurationError

if TYPE_CHECKING:
    from minitrain.data.grouped import GroupedData

__all__ = ["Transforms"]

Function = Callable[..., Any]


class Transforms(ABC):
    """The transforming methods of a dataset."""

    plan: Node

    @abstractmethod
    def _with(self, plan: Node) -> Self:
        """Return another dataset."""

    def _then(self, step: Step) -> Self:
        return self._with(Apply(self.plan, step))

    # ------------------------------------------------------------------ functions of the user
    def map_batches(
        self,
        fn: Function,
        *,
        batch_size: int | None = None,
        batch_format: BatchFormat = "default",
        fn_args: Iterable[Any] | None = None,
        fn_kwargs: Mapping[str, Any] | None = None,
        fn_constructor_args: Iterable[Any] | None = None,
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        concurrency: int | tuple[int, int] | None = None,
        udf_modifying_row_count: bool | None = None,
        zero_copy_batch: bool = True,  # noqa: ARG002 - as in ray.data
    ) -> Self:
        """Call a function on batches.

        Args:
            fn: Takes a batch and returns one, or yields some; or a class, of which each process
                makes one object and calls it.
            batch_size: Rows per call; None: as many as are read at a time.
            batch_format: What it is given: ``"default"`` and ``"numpy"``: a dict of arrays;
                ``"pandas"``: a frame; ``"pyarrow"``: a table. It may return any of them.
            fn_args: Further arguments of each call.
            fn_kwargs: Likewise.
            fn_constructor_args: Arguments of the class.
            fn_constructor_kwargs: Likewise.
            concurrency: Call it in so many processes of this host; None: in the one that iterates.
            udf_modifying_row_count: False promises that it returns as many rows as it gets; where
                a dataset is divided among workers, nothing has to be counted then. True says that
                it does not. None: where it matters it is called for all rows to find out.
            zero_copy_batch: Has no effect: a function is always given memory it may write to.

        Example:
            >>> import minitrain.data
            >>> ds = minitrain.data.range(3).map_batches(lambda batch: {"x": batch["id"] * 2})
            >>> ds.take_all()
            [{'x': 0}, {'x': 2}, {'x': 4}]
        """
        check_format(batch_format)
        if batch_size is not None:
            check_count("map_batches(batch_size)", batch_size)
        function = user_function(
            fn, fn_args, fn_kwargs, fn_constructor_args, fn_constructor_kwargs, concurrency
        )
        step = MapBatches(
            function,
            "map_batches",
            batch_size,
            batch_format,
            keeps_rows=udf_modifying_row_count is False,
            may_keep_rows=udf_modifying_row_count is None,
        )
        return self._then(step)

    def map(
        self,
        fn: Function,
        *,
        fn_args: Iterable[Any] | None = None,
        fn_kwargs: Mapping[str, Any] | None = None,
        fn_constructor_args: Iterable[Any] | None = None,
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        concurrency: int | tuple[int, int] | None = None,
    ) -> Self:
        """Call a function on each row, a dict; it returns a row.

        Arguments are those of :meth:`map_batches`, which is much faster.
        """
        function = user_function(
            fn, fn_args, fn_kwargs, fn_constructor_args, fn_constructor_kwargs, concurrency
        )
        return self._then(MapRows(function, "map"))

    def flat_map(
        self,
        fn: Function,
        *,
        fn_args: Iterable[Any] | None = None,
        fn_kwargs: Mapping[str, Any] | None = None,
        fn_constructor_args: Iterable[Any] | None = None,
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        concurrency: int | tuple[int, int] | None = None,
    ) -> Self:
        """Call a function on each row; it returns a list of rows.

        Arguments are those of :meth:`map_batches`.
        """
        function = user_function(
            fn, fn_args, fn_kwargs, fn_constructor_args, fn_constructor_kwargs, concurrency
        )
        return self._then(FlatMap(function, "flat_map"))

    def filter(
        self,
        fn: Function | None = None,
        expr: pc.Expression | None = None,
        *,
        fn_args: Iterable[Any] | None = None,
        fn_kwargs: Mapping[str, Any] | None = None,
        fn_constructor_args: Iterable[Any] | None = None,
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        concurrency: int | tuple[int, int] | None = None,
    ) -> Self:
        """Keep the rows for which a function, or an expression, is true.

        An expression of ``pyarrow.compute`` is much faster, and a Parquet reader then skips what
        it excludes.

        Args:
            fn: Takes a row; or an expression.
            expr: Such as ``pyarrow.compute.field("age") > 30``.
            fn_args: As in :meth:`map_batches`, like the others.
            fn_kwargs: Likewise.
            fn_constructor_args: Likewise.
            fn_constructor_kwargs: Likewise.
            concurrency: Likewise.
        """
        given = (fn_args, fn_kwargs, fn_constructor_args, fn_constructor_kwargs)
        if isinstance(fn, pc.Expression | str) and expr is None:
            fn, expr = None, fn  # of a text, too, an expression was meant
        if (fn is None) == (expr is None):
            raise ConfigurationError("filter: give either a function or an expression (expr=...)")
        if expr is not None:
            step = Filter(_expression("filter", expr, "pyarrow.compute.field('age') > 30"))
            if any(one is not None for one in given):
                raise ConfigurationError("filter: an expression takes no arguments of a function")
            return self._then(step)
        assert fn is not None
        return self._then(FilterRows(user_function(fn, *given, concurrency), "filter"))

    def add_column(
        self,
        col: str,
        fn: Function,
        *,
        batch_format: BatchFormat = "pandas",
        concurrency: int | tuple[int, int] | None = None,
    ) -> Self:
        """Add a column that a function computes from a batch; one of this name is replaced.

        Args:
            col: The column's name.
            fn: Takes a batch and returns an array or a series.
            batch_format: What it is given.
            concurrency: As in :meth:`map_batches`.
        """
        check_format(batch_format)
        (name,) = names_of("add_column", [col])
        function = user_function(fn, concurrency=concurrency)
        return self._then(AddColumn(function, "add_column", name, batch_format))

    # ------------------------------------------------------------------ columns and rows
    def with_column(self, column_name: str, expr: pc.Expression) -> Self:
        """Add a column that an expression of ``pyarrow.compute`` gives."""
        (name,) = names_of("with_column", [column_name])
        expression = _expression("with_column", expr, "pyarrow.compute.field('age') + 1")
        return self._then(WithColumn(name, expression))

    def drop_columns(self, cols: Sequence[str]) -> Self:
        """Leave columns out."""
        return self._then(Drop(names_of("drop_columns", cols)))

    def select_columns(self, cols: str | Sequence[str]) -> Self:
        """Keep only these columns, in this order; others are not even read from Parquet files."""
        names = names_of("select_columns", cols)
        if not names:
            raise ConfigurationError("select_columns: name at least one column")
        return self._then(Select(names))

    def rename_columns(self, names: Mapping[str, str] | Sequence[str]) -> Self:
        """Rename columns: a dict of old and new names, or all new names in order."""
        if isinstance(names, Mapping):
            old, new = list(names), list(names.values())
            pairs = zip(
                names_of("rename_columns", old), names_of("rename_columns", new), strict=True
            )
            return self._then(Rename(tuple(pairs)))
        listed = names_of("rename_columns", names)
        if not listed:
            raise ConfigurationError("rename_columns: name at least one column")
        return self._then(Rename(listed))

    def limit(self, limit: int) -> Self:
        """Keep the first rows."""
        return self._with(Limit(self.plan, 0, check_count("limit", limit, lowest=0)))

    def random_sample(self, fraction: float, *, seed: int | None = None) -> Self:
        """Keep each row with a probability; in every epoch the same rows.

        Args:
            fraction: The probability, from 0 to 1.
            seed: Of the draw; None means 0, since all workers must draw the same rows, also after
                a restart.
        """
        if not isinstance(fraction, Real) or not 0 <= fraction <= 1:
            raise ConfigurationError(f"random_sample({fraction!r}): must be between 0 and 1")
        return self._then(Sample(fraction, check_seed("random_sample", seed)))

    # ------------------------------------------------------------------ datasets
    def union(self, *other: Self) -> Self:
        """Return the rows of this dataset and then those of others."""
        return self._with(Union((self.plan, *_plans("union", other))))

    def zip(self, *other: Self) -> Self:
        """Return this dataset's columns and those of others, of as many rows, side by side.

        A column whose name is taken gets a number: ``x_1``.
        """
        plan = self.plan
        for right in _plans("zip", other):
            plan = Zip(plan, right)
        return self._with(plan)

    # ------------------------------------------------------------------ order
    def randomize_block_order(
        self, *, seed: int | None = None, reseed_after_execution: bool = True
    ) -> Self:
        """Shuffle the blocks, the cheapest shuffle; the rows of a block stay together.

        Args:
            seed: Of the order; None means 0, since an order must be the same after a restart.
            reseed_after_execution: Whether each epoch has another order.
        """
        return self._with(
            ShuffleBlocks(
                self.plan, check_seed("randomize_block_order", seed), reseed_after_execution
            )
        )

    def random_shuffle(
        self,
        *,
        seed: int | None = None,
        reseed_after_execution: bool = True,
        num_blocks: int | None = None,  # noqa: ARG002 - as in ray.data
    ) -> Self:
        """Shuffle all rows, the dearest shuffle.

        What comes before is read once, into shared memory or, if it is large, a spill file, from
        where each epoch takes the rows in its own order. It takes 8 bytes of memory per row.

        Args:
            seed: Of the order; None means 0, since an order must be the same after a restart.
            reseed_after_execution: Whether each epoch has another order.
            num_blocks: Has no effect.
        """
        return self._with(
            ShuffleRows(self.plan, check_seed("random_shuffle", seed), reseed_after_execution)
        )

    def repartition(
        self,
        num_blocks: int | None = None,
        target_num_rows_per_block: int | None = None,
        *,
        shuffle: bool = False,
    ) -> Self:
        """Cut the rows into other blocks, which are read, or shuffled, one by one.

        Args:
            num_blocks: Into so many.
            target_num_rows_per_block: Into ones of so many rows.
            shuffle: Shuffle all rows before.
        """
        if (num_blocks is None) == (target_num_rows_per_block is None):
            raise ConfigurationError(
                "repartition: give either num_blocks or target_num_rows_per_block"
            )
        for count in (num_blocks, target_num_rows_per_block):
            if count is not None:
                check_count("repartition", count)
        child = self.random_shuffle().plan if shuffle else self.plan
        return self._with(Repartition(child, num_blocks, target_num_rows_per_block))

    def sort(self, key: str | Sequence[str], descending: bool | Sequence[bool] = False) -> Self:
        """Sort all rows, which are brought into shared memory or a spill file for it.

        Args:
            key: One or more columns.
            descending: For all of them, or for each. Nulls come last.
        """
        keys = names_of("sort", key)
        if not keys:
            raise ConfigurationError("sort: name at least one column")
        down = _directions(descending, len(keys))
        by = Sorted(tuple(zip(keys, down, strict=True)))
        return self._with(Whole(self.plan, by.describe(), by))

    def groupby(self, key: str | Sequence[str] | None) -> GroupedData:
        """Group rows by the values of one or more columns; None: all rows are one group."""
        from minitrain.data.grouped import GroupedData

        return GroupedData(self.plan, () if key is None else names_of("groupby", key))


def _expression(what: str, expr: Any, example: str) -> pc.Expression:
    if not isinstance(expr, pc.Expression):
        raise TypeError(
            f"{what}(expr) must be an expression of pyarrow.compute, such as {example}, "
            f"not {expr!r}"
        )
    return expr


def _plans(what: str, others: Iterable[Any]) -> list[Node]:
    for one in others:
        if not isinstance(one, Transforms):
            several = isinstance(one, list | tuple)
            hint = f": give them one by one, {what}(*datasets)" if several else ""
            raise TypeError(f"{what}: {type(one).__name__} is no dataset{hint}")
    return [one.plan for one in others]


def _directions(descending: bool | Iterable[bool], columns: int) -> list[bool]:
    down = list(descending) if isinstance(descending, Iterable) else [descending] * columns
    if not all(isinstance(one, bool | np.bool_) for one in down):
        raise TypeError(f"sort(descending={descending!r}): must be True or False, or one a column")
    if len(down) != columns:
        raise ConfigurationError(f"sort: {columns} columns, but {len(down)} directions")
    return [bool(one) for one in down]
