"""What happens to the rows of a block after they were read, table by table.

A step that keeps rows gives exactly one row for each, in the same order; only then is it known
without counting which rows of a file a position in the dataset means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from minitrain.data import order
from minitrain.data.plans.block import Block
from minitrain.data.plans.tables import sliced, with_column
from minitrain.exceptions import ColumnError, ConfigurationError, DataError

if TYPE_CHECKING:
    import pyarrow.compute as pc

__all__ = [
    "Drop",
    "Filter",
    "MappedBlock",
    "Rename",
    "Sample",
    "Select",
    "Step",
    "TableStep",
    "WithColumn",
    "check_columns",
    "names_of",
]


class Step(ABC):
    """Something that is done to each block by itself.

    Attributes:
        keeps_rows: Whether each row gives exactly one, in the same order.
        may_keep_rows: Whether that is not known, and can be found out by counting.
    """

    keeps_rows: bool = True
    may_keep_rows: bool = False

    @abstractmethod
    def apply(self, tables: Iterator[pa.Table], block: str, first: int) -> Iterator[pa.Table]:
        """Yield what becomes of a block's tables.

        Args:
            tables: Consecutive rows.
            block: The block's name, for messages.
            first: Which of the block's rows comes first.
        """

    def apply_to_parts(
        self,
        block: Block,  # noqa: ARG002
        start: int,  # noqa: ARG002
        stop: int | None,  # noqa: ARG002
    ) -> Iterator[pa.Table] | None:
        """Yield what becomes of rows of a block that the step reads itself; None: it reads none."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """Return one line for a plan that prints itself."""

    def check_pickles(self) -> None:  # noqa: B027 - most steps hold nothing of the user's
        """Raise a TransformError if a function of the user's cannot be pickled."""


class TableStep(Step):
    """A step on each table by itself."""

    def apply(self, tables: Iterator[pa.Table], block: str, first: int) -> Iterator[pa.Table]:
        """Yield each table as :meth:`on_table` makes it, but for empty ones."""
        for table in tables:
            made = self.on_table(table, block, first)
            first += table.num_rows
            if made.num_rows:
                yield made

    @abstractmethod
    def on_table(self, table: pa.Table, block: str, first: int) -> pa.Table:
        """Return what becomes of a table; the other arguments are those of :meth:`apply`."""


@dataclass(frozen=True)
class Select(TableStep):
    """Keeps some columns, in this order.

    Attributes:
        columns: Their names.
        wanted_by: What the user called that needs them, for messages; empty: select_columns.
    """

    columns: tuple[str, ...]
    wanted_by: str = ""

    def on_table(self, table: pa.Table, block: str, first: int) -> pa.Table:  # noqa: ARG002
        """Return the columns."""
        check_columns(self.columns, table.column_names, self.wanted_by or self.describe())
        return table.select(list(self.columns))

    def describe(self) -> str:
        """Return one line."""
        return f"select_columns({', '.join(self.columns)})"


@dataclass(frozen=True)
class Drop(TableStep):
    """Leaves some columns out."""

    columns: tuple[str, ...]

    def on_table(self, table: pa.Table, block: str, first: int) -> pa.Table:  # noqa: ARG002
        """Return the other columns."""
        check_columns(self.columns, table.column_names, self.describe())
        if self.columns and len(self.columns) == table.num_columns:
            raise ConfigurationError(f"{self.describe()}: no other column is left")
        return table.drop_columns(list(self.columns))

    def describe(self) -> str:
        """Return one line."""
        return f"drop_columns({', '.join(self.columns)})"


@dataclass(frozen=True)
class Rename(TableStep):
    """Gives columns other names: pairs of old and new, or all the new ones in order."""

    names: tuple[tuple[str, str], ...] | tuple[str, ...]

    def renamed(self, columns: Sequence[str]) -> list[str]:
        """Return the new names of columns."""
        if any(isinstance(name, str) for name in self.names):
            if len(self.names) != len(columns):
                raise DataError(
                    f"rename_columns: {len(self.names)} names were given for {len(columns)} "
                    f"columns: {list(columns)}"
                )
            return [str(name) for name in self.names]
        pairs: dict[str, str] = dict(self.names)  # type: ignore[arg-type]
        check_columns(pairs, columns, "rename_columns")
        new = [pairs.get(name, name) for name in columns]
        twice = sorted({name for name in new if new.count(name) > 1})
        if twice:
            raise DataError(f"rename_columns: there would be several columns named {twice}")
        return new

    def on_table(self, table: pa.Table, block: str, first: int) -> pa.Table:  # noqa: ARG002
        """Return the table with other names."""
        return table.rename_columns(self.renamed(table.column_names))

    def describe(self) -> str:
        """Return one line."""
        texts = [one if isinstance(one, str) else f"{one[0]} to {one[1]}" for one in self.names]
        return f"rename_columns({', '.join(texts)})"


@dataclass(frozen=True, eq=False)
class Filter(TableStep):
    """Keeps rows for which an expression holds."""

    expression: pc.Expression
    keeps_rows = False

    def on_table(self, table: pa.Table, block: str, first: int) -> pa.Table:  # noqa: ARG002
        """Return the rows."""
        with _naming_columns("filter", table):
            return table.filter(self.expression)

    def describe(self) -> str:
        """Return one line."""
        return f"filter({self.expression})"


@dataclass(frozen=True, eq=False)
class WithColumn(TableStep):
    """Computes a column."""

    name: str
    expression: pc.Expression

    def on_table(self, table: pa.Table, block: str, first: int) -> pa.Table:  # noqa: ARG002
        """Return the table with the column, in the place of one of this name if there is one."""
        import pyarrow.dataset as pads  # imports pandas, which takes a second

        with _naming_columns("with_column", table):
            made = pads.dataset(table).to_table(columns={self.name: self.expression})
        return with_column(table, self.name, made.column(0))

    def describe(self) -> str:
        """Return one line."""
        return f"with_column({self.name} = {self.expression})"


@dataclass(frozen=True)
class Sample(Step):
    """Keeps each row with a probability; always the same rows of a block."""

    fraction: float
    seed: int
    keeps_rows = False

    def apply(self, tables: Iterator[pa.Table], block: str, first: int) -> Iterator[pa.Table]:  # noqa: ARG002
        """Yield the rows."""
        random = np.random.Generator(np.random.PCG64(order.key_of("sample", self.seed, block)))
        for table in tables:
            kept = table.filter(pa.array(random.random(table.num_rows) < self.fraction))
            if kept.num_rows:
                yield kept

    def describe(self) -> str:
        """Return one line."""
        return f"random_sample({self.fraction}, seed={self.seed})"


class _naming_columns:  # noqa: N801 - used as a function
    """Turns Arrow's complaint about a column in an expression into ours."""

    def __init__(self, what: str, table: pa.Table) -> None:
        self._what = what
        self._table = table

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, pa.ArrowInvalid) and "FieldRef.Name(" in str(error):
            name = str(error).split("FieldRef.Name(", 1)[1].split(")", 1)[0]
            raise ColumnError(name, self._table.column_names, self._what) from None
        if isinstance(error, pa.ArrowException):
            raise DataError(f"{self._what}: {error}") from error


def check_columns(names: Iterable[str], columns: Sequence[str], what: str) -> None:
    """Raise a ColumnError for the first name that is not among the columns."""
    for name in names:
        if name not in columns:
            raise ColumnError(name, columns, what)


def names_of(what: str, names: Any) -> tuple[str, ...]:
    """Return names of columns as they were given to a method: one of them, or several.

    Raises:
        TypeError: One is no name.
        ConfigurationError: One is given twice.
    """
    if isinstance(names, Mapping) or not isinstance(names, Iterable):
        raise TypeError(f"{what}: {names!r} is no name of a column and no list of names")
    listed = (names,) if isinstance(names, str) else tuple(names)
    wrong = [name for name in listed if not isinstance(name, str)]
    if wrong:
        raise TypeError(f"{what}: {wrong[0]!r} is no name of a column")
    if len(set(listed)) < len(listed):
        raise ConfigurationError(f"{what}: a column is named twice in {list(listed)}")
    return listed


@dataclass(frozen=True, slots=True)
class MappedBlock(Block):
    """A block and the steps its rows go through.

    Args:
        block: What is read.
        steps: What is done to it, in this order.
        known_rows: How many rows come out, if they were counted.
    """

    block: Block
    steps: tuple[Step, ...]
    known_rows: int | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """The block's name."""
        return self.block.name

    @property
    def rows(self) -> int | None:  # type: ignore[override]
        """How many rows come out, if that is known."""
        if self.known_rows is not None:
            return self.known_rows
        return self.block.rows if self._keeps_rows else None

    @property
    def size_bytes(self) -> int | None:  # type: ignore[override]
        """The block's: what steps make of it is not known."""
        return self.block.size_bytes

    @property
    def reading_bytes(self) -> int:
        """The block's."""
        return self.block.reading_bytes

    @property
    def is_remote(self) -> bool:
        """Whether the block is."""
        return self.block.is_remote

    @property
    def _keeps_rows(self) -> bool:
        return all(step.keeps_rows for step in self.steps)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield rows that come out of the last step."""
        if self._keeps_rows:
            return self._run(self.steps, start, stop)
        return sliced(self._run(self.steps, 0, None), start, stop)

    def count(self) -> int:
        """Count what comes out; steps behind the last that changes the number are left out."""
        if self.rows is not None:
            return self.rows
        last = max((i for i, step in enumerate(self.steps) if not step.keeps_rows), default=-1)
        if last < 0:
            return self.block.count()
        return sum(table.num_rows for table in self._run(self.steps[: last + 1], 0, None))

    def _run(self, steps: Sequence[Step], start: int, stop: int | None) -> Iterator[pa.Table]:
        tables = steps[0].apply_to_parts(self.block, start, stop) if steps else None
        done = 0 if tables is None else 1
        if tables is None:
            tables = self.block.read(start, stop)
        for number, step in enumerate(steps):
            if number >= done:
                tables = step.apply(tables, self.name, start)
            if not step.keeps_rows:
                start = 0
        return tables
