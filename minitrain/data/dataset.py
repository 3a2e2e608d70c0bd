"""Datasets: what is read, what is done to it, and how its rows are taken."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

import pyarrow as pa

from minitrain.data import values
from minitrain.data.consume import Consumes
from minitrain.data.context import DataContext
from minitrain.data.feeding.formats import ArrowFormat
from minitrain.data.feeding.stream import Batching, open_batches
from minitrain.data.iterator import DataIterator, Iterates, Remainder
from minitrain.data.plans.columns import check_steps
from minitrain.data.plans.functions import check_count, check_seed
from minitrain.data.plans.mapped import HostTable, blocks_of
from minitrain.data.plans.plan import (
    Listed,
    Node,
    Read,
    ShuffleBlocks,
    counted,
    sources_of,
    written,
)
from minitrain.data.plans.planning import (
    explain,
    first_table,
    optimized,
    prepared,
    resolved,
    steps_of,
)
from minitrain.data.plans.runtime import Runtime
from minitrain.data.plans.steps import Select
from minitrain.data.splitting import Splits
from minitrain.data.transforms import Transforms
from minitrain.data.writing.write import Writes
from minitrain.exceptions import ConfigurationError

if TYPE_CHECKING:
    from minitrain.data.plans.block import Source
    from minitrain.data.processes.shared import SharedTable

__all__ = ["Dataset", "MaterializedDataset", "from_source", "in_memory"]

_TABLES = Batching(form=ArrowFormat(), size=None, prefetch=0)


class Dataset(Transforms, Iterates, Consumes, Splits, Writes):
    """Rows that are read when they are needed, in blocks, and what is done to them on the way.

    A dataset is lazy and never changes: each method that transforms returns another one, and
    nothing is read before rows are asked for. It is made by the functions of ``minitrain.data``,
    such as :func:`minitrain.data.read_parquet`.

    Args:
        plan: What it stands for.
    """

    def __init__(self, plan: Node) -> None:
        self.plan = plan
        self._prepared: Node | None = None
        self._is_resolved = False
        self._next_epoch = 0
        self._runtime: Runtime | None = None

    def __repr__(self) -> str:
        return f"Dataset({explain(self.plan).splitlines()[0]})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_runtime": None}

    def _with(self, plan: Node) -> Self:
        return Dataset(plan)  # type: ignore[return-value]  # also of a materialized one

    # ------------------------------------------------------------------ running
    def _ready(self, runtime: Runtime) -> Node:
        """Return the plan with everything done that is done once."""
        if self._prepared is None:
            with runtime.in_this_thread():
                self._prepared = prepared(optimized(self.plan))
        return self._prepared

    @contextmanager
    def _running(self) -> Generator[Runtime, None, None]:
        """Have what functions need for as long as the ``with`` block lasts."""
        runtime = Runtime()
        self._runtime = runtime
        with closing(runtime):
            yield runtime
        for source in sources_of(self.plan):
            source.warn_of_skips()

    def _begin(self, batching: Batching) -> Generator[Any, None, None]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        with self._running() as runtime:
            yield from self._batches(epoch, batching, runtime)

    def _batches(
        self, epoch: int, batching: Batching, runtime: Runtime
    ) -> Generator[Any, None, None]:
        blocks = self._ready(runtime).blocks(epoch)
        with closing(open_batches(blocks, epoch, batching, runtime)) as made:
            for batch, rows in made:
                for part, _ in batching.handed_out(batch, rows):
                    yield part

    def _device(self) -> Any:
        return "cpu"

    def counted(self, columns: Sequence[str] | None = None) -> DataIterator:
        """Return an iterator over the whole dataset, its rows counted.

        Args:
            columns: Only these, without which the others need not be read; None: all.
        """
        needed = self
        if columns is not None:
            needed = self._then(Select(tuple(columns), "to_torch"))
        return DataIterator(needed.resolved().plan, equal=False)

    def _tables(self) -> Generator[pa.Table, None, None]:
        """Yield all rows of the first epoch."""
        with self._running() as runtime:
            yield from self._batches(0, _TABLES, runtime)

    # ------------------------------------------------------------------ rows
    def take(self, limit: int = 20) -> list[dict[str, Any]]:
        """Return the first rows, as dicts."""
        return self._first(check_count("take(limit)", limit, lowest=0))

    def take_all(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return all rows.

        Raises:
            ValueError: There are more than ``limit``.
        """
        if limit is None:
            return list(self._rows())
        rows = self._first(check_count("take_all(limit)", limit, lowest=0) + 1)
        if len(rows) > limit:
            raise ValueError(f"take_all({limit}): the dataset has more rows")
        return rows

    def take_batch(
        self,
        batch_size: int = 20,
        *,
        batch_format: Literal["default", "numpy", "pandas", "pyarrow"] | None = "default",
    ) -> Any:
        """Return the first rows as one batch."""
        values.check_format(batch_format)
        rows = check_count("take_batch(batch_size)", batch_size, lowest=0)
        return values.batch_from_table(self._head(rows), batch_format)

    def show(self, limit: int = 20) -> None:
        """Print the first rows."""
        for row in self._first(check_count("show(limit)", limit, lowest=0)):
            print(row)  # noqa: T201 - that is what it is for

    def _first(self, limit: int) -> list[dict[str, Any]]:
        with closing(self._rows()) as rows:
            return list(itertools.islice(rows, limit))

    def _rows(self) -> Generator[dict[str, Any], None, None]:
        with closing(self._tables()) as made:
            for table in made:
                yield from values.rows_from_table(table)

    def _head(self, rows: int) -> pa.Table:
        held: list[pa.Table] = []
        with closing(self._tables()) as made:
            for table in made:
                held.append(table.slice(0, rows))
                rows -= held[-1].num_rows
                if rows <= 0:
                    break
        if not held:
            return pa.table({})
        return values.concat_tables(held)

    def count(self) -> int:
        """Return the number of rows; without reading them, if metadata tell it.

        Raises:
            ColumnError: A column that was selected, dropped or renamed is known not to be there.
        """
        with self._running() as runtime:
            plan = self._ready(runtime)
            with runtime.in_this_thread():
                blocks = counted(plan.blocks(0))
                if blocks:
                    check_steps(plan)
                return sum(block.rows or 0 for block in blocks)

    def schema(self) -> pa.Schema | None:
        """Return the columns and their types; None if there are no rows.

        Files are not read where their metadata is enough; a function of the user is called on the
        first row.
        """
        plan = optimized(self.plan)
        if isinstance(plan, Read) and plan.source.columns is None:
            return plan.source.schema()
        with self._running() as runtime:
            table = first_table(self._ready(runtime), runtime)
        return None if table is None else table.schema

    def columns(self) -> list[str] | None:
        """Return the columns' names; None if there are no rows."""
        schema = self.schema()
        return None if schema is None else list(schema.names)

    # ------------------------------------------------------------------ the whole
    def materialize(self) -> MaterializedDataset:
        """Read everything once, into memory that all processes of this host can map.

        That is shared memory, or a spill file if it is more than
        ``DataContext.shared_memory_bytes``; neither has a name, and both vanish with this process.
        """
        text = explain(self.plan).splitlines()[0]
        make = Dataset(self.plan).written
        return in_memory(HostTable(make(), make), text)

    def written(self) -> SharedTable:
        """Read everything into memory that all processes of this host can map."""
        with closing(self._tables()) as made:
            return written(made, self.plan.describe())

    def iterator(self) -> DataIterator:
        """Return an iterator over the whole dataset that knows where it is."""
        return DataIterator(self.plan)

    def streaming_split(
        self,
        n: int,
        *,
        equal: bool = False,
        locality_hints: Any = None,  # noqa: ARG002 - as in ray.data
        remainder: Remainder = "drop",
    ) -> list[DataIterator]:
        """Divide each epoch among ``n`` iterators, which need not know of each other.

        Args:
            n: How many.
            equal: Give each as many rows.
            locality_hints: Has no effect.
            remainder: What becomes of the rows that do not go evenly, with ``equal``: ``"drop"``:
                nobody gets them; ``"pad"``: some rows come twice.
        """
        n = check_count("streaming_split(n)", n)
        if remainder not in {"drop", "pad"}:
            raise ConfigurationError(f"remainder={remainder!r}: must be 'drop' or 'pad'")
        plan = self.resolved().plan
        return [DataIterator(plan, rank, n, equal=equal, remainder=remainder) for rank in range(n)]

    def resolved(self, *, shared: bool = False) -> Dataset:
        """Return the same dataset, listed and counted: what it needs to be divided.

        Args:
            shared: Put what lies in this process's memory where others of this host can map it.

        Raises:
            DataError: Something is wrong with the files or in a function of the user, which is
                called on the first row in any case.
        """
        if self._is_resolved:
            return self
        with self._running() as runtime:
            with runtime.in_this_thread():
                plan = resolved(optimized(self.plan), shared=shared)
            first_table(plan, runtime)
        dataset = Dataset(plan)
        dataset._is_resolved = True
        return dataset

    def check_functions(self) -> None:
        """Pickle every function that the rows of the first block go through, to see that it works.

        Raises:
            TransformError: One cannot be pickled; it is named.
        """
        for step in steps_of(self.plan):
            step.check_pickles()

    def num_blocks(self) -> int:
        """Return how many blocks there are."""
        with self._running() as runtime:
            plan = self._ready(runtime)
            with runtime.in_this_thread():
                return sum(1 for _ in plan.blocks(0))

    def input_files(self) -> list[str]:
        """Return the files that are read."""
        return sorted({path for source in sources_of(self.plan) for path in source.input_files()})

    def explain(self) -> str:
        """Return the plan as text: what is read at the bottom, what is done to it above."""
        return explain(optimized(self.plan))

    def stats(self) -> str:
        """Return where the time of the last iteration went, by part of the plan."""
        return "nothing was read yet" if self._runtime is None else self._runtime.meter.describe()

    @property
    def context(self) -> DataContext:
        """The settings of datasets in this process."""
        return DataContext.get_current()


class MaterializedDataset(Dataset):
    """A dataset whose rows lie in memory that all processes of the host map."""


def in_memory(table: HostTable, text: str) -> MaterializedDataset:
    """Return the dataset of a table in shared memory."""
    return MaterializedDataset(Listed(tuple(blocks_of(table, text)), text))


def from_source(source: Source) -> Dataset:
    """Return the dataset of a source, with its blocks shuffled if it was asked for."""
    plan: Node = Read(source)
    shuffle = source.shuffle
    if shuffle is not None:
        plan = ShuffleBlocks(
            plan, check_seed("FileShuffleConfig", shuffle.seed), shuffle.reseed_after_execution
        )
    return Dataset(plan)
