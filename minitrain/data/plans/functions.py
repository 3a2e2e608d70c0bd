"""Steps that call a function of the user: on batches or rows, here or in a pool of processes."""

from __future__ import annotations

import inspect
import operator
import pickle
import struct
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NoReturn

import cloudpickle
import pyarrow as pa

from minitrain._os.forks import unlock_in_forks
from minitrain.data import values
from minitrain.data.context import DataContext
from minitrain.data.plans.block import Block
from minitrain.data.plans.runtime import current_runtime
from minitrain.data.plans.steps import Step
from minitrain.data.plans.tables import joined, rebatched, with_column
from minitrain.exceptions import ConfigurationError, DataError, TransformError

__all__ = [
    "AddColumn",
    "BatchFormat",
    "FilterRows",
    "FlatMap",
    "FunctionStep",
    "MapBatches",
    "MapRows",
    "UserFunction",
    "check_count",
    "check_seed",
    "tables_from",
    "user_function",
]

BatchFormat = Literal["default", "numpy", "pandas", "pyarrow"] | None

_ROWS_AT_A_TIME = 4096
"""Rows as Python objects take many times what they take in Arrow."""


class UserFunction:
    """A function, or a class of which each process makes one object and calls it.

    Args:
        function: The function or the class.
        args: Further arguments of each call.
        kwargs: Likewise.
        constructor_args: Arguments of the class.
        constructor_kwargs: Likewise.
        concurrency: In so many processes; 0: in the one that iterates.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        constructor_args: Sequence[Any] = (),
        constructor_kwargs: Mapping[str, Any] | None = None,
        concurrency: int = 0,
    ) -> None:
        self._function = function
        self._args = tuple(args)
        self._kwargs = dict(kwargs or {})
        self._constructor_args = tuple(constructor_args)
        self._constructor_kwargs = dict(constructor_kwargs or {})
        self.concurrency = concurrency
        self.name = getattr(function, "__name__", None) or type(function).__name__
        self._object: Callable[..., Any] | None = None
        self._lock = threading.Lock()
        unlock_in_forks(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_object": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})
        unlock_in_forks(self)

    @property
    def has_constructor_args(self) -> bool:
        """Whether there are arguments of a class."""
        return bool(self._constructor_args or self._constructor_kwargs)

    def call(self, batch: Any) -> Any:
        """Call the function on a batch or a row."""
        if self._object is None:
            self._object = self._made()
        return self._object(batch, *self._args, **self._kwargs)

    def alone(self) -> threading.Lock:
        """Return the lock that calls are made under: no function is called by two threads."""
        return self._lock

    def _made(self) -> Callable[..., Any]:
        if inspect.isclass(self._function):
            made = self._function(*self._constructor_args, **self._constructor_kwargs)
            if not callable(made):
                raise TypeError(f"objects of the class {self.name} cannot be called")
            return made
        return self._function


@dataclass(frozen=True, eq=False)
class FunctionStep(Step):
    """A step that calls a function of the user.

    Attributes:
        function: What is called.
        verb: The method that made the step, for messages.
    """

    function: UserFunction
    verb: str

    @property
    def batch_rows(self) -> int | None:
        """So many rows are handed to :meth:`on_batch` at a time; None: as they come."""
        return _ROWS_AT_A_TIME

    @abstractmethod
    def on_batch(self, table: pa.Table) -> Iterator[pa.Table]:
        """Call the function; also in a process of a pool."""

    def describe(self) -> str:
        """Return one line."""
        processes = self.function.concurrency
        where = f", concurrency={processes}" if processes else ""
        return f"{self.verb}({self.function.name}{where})"

    def on_part(self, part: pa.Table) -> Iterator[pa.Table]:
        """Read some rows and call the function with them: in a process of a pool."""
        block: Block = pickle.loads(part.column(0)[0].as_py())
        tables = list(block.read())
        if tables:
            yield from self.on_batch(values.concat_tables(tables))

    def pickled(self, *, reads: bool = False) -> bytes:
        """Return :meth:`on_batch`, or :meth:`on_part`, for the processes of a pool.

        Each table that comes back is a mapping of its own, of which a process can have so many:
        small ones are joined.

        Raises:
            TransformError: The function cannot be pickled.
        """
        called = self.on_part if reads else self.on_batch
        target_bytes = DataContext.get_current().target_table_bytes
        try:
            pickled: bytes = cloudpickle.dumps(partial(_joining, called, target_bytes))
        except Exception as error:
            raise TransformError(
                f"{self.describe()} cannot be sent to another process: {error}; open files, "
                "connections and locks are better made in __init__ of a class"
            ) from error
        return pickled

    def check_pickles(self) -> None:
        """Raise a TransformError if the function cannot be pickled."""
        self.pickled()

    def apply(self, tables: Iterator[pa.Table], block: str, first: int) -> Iterator[pa.Table]:
        """Yield what the function makes of a block's tables."""
        if self.batch_rows is not None:
            tables = rebatched(tables, self.batch_rows)
        in_order = _InOrder(self, ((one, one.num_rows) for one in tables), block, first)
        if self.function.concurrency:
            pool = current_runtime().pool(self, reads=False)
            made = pool.map(in_order, block, in_order.finished)
        else:
            made = in_order.called()
        return self._taken(made, in_order)

    def apply_to_parts(
        self, block: Block, start: int, stop: int | None
    ) -> Iterator[pa.Table] | None:
        """Have the processes of a pool read what they work on, where that is no loss."""
        parts = block.cut(start, stop, self.batch_rows) if self.function.concurrency else None
        if parts is None:
            return None
        sent = ((_as_table(pickle.dumps(one)), one.count()) for one in parts)
        in_order = _InOrder(self, sent, block.name, start)
        pool = current_runtime().pool(self, reads=True)
        made = pool.map(in_order, block.name, in_order.finished, in_order.rows_of_last)
        return self._taken(made, in_order)

    def _taken(self, made: Iterator[pa.Table], in_order: _InOrder) -> Iterator[pa.Table]:
        runtime = current_runtime()
        started = time.perf_counter()
        try:
            for table in made:
                seconds = time.perf_counter() - started
                runtime.meter.add(self.describe(), seconds, table.num_rows, table.nbytes)
                if table.num_rows:
                    yield table
                started = time.perf_counter()
        except Exception as error:  # noqa: BLE001 - it is the user's, and wrapped
            in_order.fail(error)


def _joining(
    called: Callable[[pa.Table], Iterator[pa.Table]], target_bytes: int, table: pa.Table
) -> Iterator[pa.Table]:
    return joined(called(table), target_bytes)


def _as_table(pickled: bytes) -> pa.Table:
    """Return a table of these bytes alone; ``pa.table`` would import pandas."""
    offsets = pa.py_buffer(struct.pack("=2i", 0, len(pickled)))
    array = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(pickled)])
    return pa.Table.from_arrays([array], names=["block"])


class _InOrder:
    """Hands tables to a function, and knows on which rows it failed."""

    def __init__(
        self,
        step: FunctionStep,
        tables: Iterator[tuple[pa.Table, int]],  # with the number of rows that they stand for
        block: str,
        first: int,
    ) -> None:
        self._step = step
        self._tables = tables
        self._block = block
        self._next = first
        self._failed: Exception | None = None
        self._begun: deque[tuple[int, int]] = deque()

    def __iter__(self) -> Iterator[pa.Table]:
        try:
            for table, rows in self._tables:
                self._begun.append((self._next, self._next + rows))
                self._next += rows
                yield table
        except Exception as error:
            self._failed = error  # not the function's: of the file, or of a step before this one
            raise

    def called(self) -> Iterator[pa.Table]:
        """Yield what the function returns in this process."""
        for table in self:
            made = self._step.on_batch(table)
            while (one := self._next_of(made)) is not None:
                yield one
                del one
            self.finished()

    def _next_of(self, made: Iterator[pa.Table]) -> pa.Table | None:
        """Return the next table; who waits until it is taken keeps the function from nobody."""
        with self._step.function.alone():
            return next(made, None)

    def rows_of_last(self, table: pa.Table) -> int:  # noqa: ARG002
        """Return how many rows the table stands for that was handed over last."""
        first, last = self._begun[-1]
        return last - first

    def finished(self) -> None:
        """Take note that the function is done with the first of the tables it was given."""
        self._begun.popleft()

    def fail(self, error: Exception) -> NoReturn:
        """Raise what stands for an error of the function."""
        if error is self._failed:
            raise error
        first, last = self._begun[0] if self._begun else (self._next, self._next + 1)
        where = f"at rows {first} to {last - 1} of {self._block}"
        if isinstance(error, _NotABatchError):
            kind_of_error = RowsChangedError if isinstance(error, _RowsChanged) else TransformError
            raise kind_of_error(f"{self._step.describe()} {error}, {where}") from None
        if type(error) is DataError:  # of a process of the pool
            name = self._step.describe()
            text = str(error).removeprefix(f"{name}: ")
            raise DataError(f"{name}, {where}: {text}") from error
        if isinstance(error, DataError):
            raise error
        kind = type(error).__name__
        raise TransformError(f"{self._step.describe()} raised {kind}: {error}, {where}") from error


class _NotABatchError(TypeError):
    """The function returned something else than it should."""


class _RowsChanged(_NotABatchError):  # noqa: N818 - it stands for the next one in a pool
    """The function returned another number of rows."""


class RowsChangedError(TransformError):
    """A function that should return as many rows as it gets does not."""


@dataclass(frozen=True, eq=False)
class MapBatches(FunctionStep):
    """Calls a function on batches.

    Attributes:
        batch_size: Rows per call; None: as many as are read at a time.
        batch_format: What the function is given.
        keeps_rows: Whether it was said, or found, to return as many rows as it gets.
        may_keep_rows: Whether nothing was said.
    """

    batch_size: int | None
    batch_format: BatchFormat
    keeps_rows: bool = False
    may_keep_rows: bool = False

    @property
    def batch_rows(self) -> int | None:
        """So many rows are handed over at a time."""
        return self.batch_size

    def on_batch(self, table: pa.Table) -> Iterator[pa.Table]:
        """Call the function on the batch; what a generator yields is one table after the other."""
        returned = self.function.call(values.batch_from_table(table, self.batch_format))
        rows = 0
        for made in tables_from(returned):
            rows += made.num_rows
            yield made
        if self.keeps_rows and rows != table.num_rows:
            known = "once it returned as many" if self.may_keep_rows else "...=False was said"
            raise _RowsChanged(
                f"returned {rows} rows for {table.num_rows}, although {known}: say "
                "udf_modifying_row_count=True"
            )


@dataclass(frozen=True, eq=False)
class MapRows(FunctionStep):
    """Calls a function on each row; it returns a row."""

    def on_batch(self, table: pa.Table) -> Iterator[pa.Table]:
        """Call the function on each row."""
        yield _rows([_row(self.function.call(row)) for row in values.rows_from_table(table)])


@dataclass(frozen=True, eq=False)
class FlatMap(FunctionStep):
    """Calls a function on each row; it returns any number of them."""

    keeps_rows: bool = field(default=False, init=False)

    def on_batch(self, table: pa.Table) -> Iterator[pa.Table]:
        """Call the function on each row."""
        made: list[Mapping[str, Any]] = []
        for row in values.rows_from_table(table):
            returned = self.function.call(row)
            if isinstance(returned, Mapping | str) or not hasattr(returned, "__iter__"):
                raise _NotABatchError(
                    f"returned {_kind(returned)}, not a list of rows, each a dict of columns"
                )
            made.extend(_row(one) for one in returned)
        if made:
            yield _rows(made)


@dataclass(frozen=True, eq=False)
class FilterRows(FunctionStep):
    """Keeps the rows for which a function returns something true."""

    keeps_rows: bool = field(default=False, init=False)

    def on_batch(self, table: pa.Table) -> Iterator[pa.Table]:
        """Call the function on each row."""
        keep = [bool(self.function.call(row)) for row in values.rows_from_table(table)]
        yield table.filter(pa.array(keep, pa.bool_()))


@dataclass(frozen=True, eq=False)
class AddColumn(FunctionStep):
    """Adds a column that a function computes from a batch."""

    name: str
    batch_format: BatchFormat

    @property
    def batch_rows(self) -> int | None:
        """As they come."""
        return None

    def on_batch(self, table: pa.Table) -> Iterator[pa.Table]:
        """Call the function on a batch."""
        returned = self.function.call(values.batch_from_table(table, self.batch_format))
        if isinstance(returned, pa.Array | pa.ChunkedArray):
            column = pa.table({self.name: returned})
        else:
            column = _table({self.name: returned})
        if column.num_rows != table.num_rows:
            raise _NotABatchError(
                f"returned {column.num_rows} values for the column {self.name!r} of "
                f"{table.num_rows} rows"
            )
        yield with_column(table, self.name, column.column(0))


def tables_from(returned: Any) -> Iterator[pa.Table]:
    """Yield what a function returned for a batch, or one table after the other that it yields."""
    for part in returned if isinstance(returned, Generator) else (returned,):
        yield _table(part)


def _table(returned: Any) -> pa.Table:
    try:
        return _with_columns(values.table_from_batch(returned, "the function"))
    except (TypeError, ValueError) as error:
        text = str(error).removeprefix("the function ")
        raise _NotABatchError(text) from error


def _with_columns(table: pa.Table) -> pa.Table:
    if table.num_rows and not table.num_columns:
        raise ValueError(f"returned {table.num_rows:,} rows without any column")
    return table


def _row(returned: Any) -> Mapping[str, Any]:
    if not isinstance(returned, Mapping):
        raise _NotABatchError(f"returned {_kind(returned)}, not a row: a dict of columns")
    return returned


def _rows(rows: list[Mapping[str, Any]]) -> pa.Table:
    try:
        return _with_columns(values.table_from_rows(rows, "the function"))
    except (TypeError, ValueError) as error:
        text = str(error).removeprefix("the function ")
        raise _NotABatchError(text) from error


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def user_function(
    fn: Callable[..., Any],
    args: Iterable[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    constructor_args: Iterable[Any] | None = None,
    constructor_kwargs: Mapping[str, Any] | None = None,
    concurrency: int | tuple[int, int] | None = None,
) -> UserFunction:
    """Return what a user's function is called with, and where, as the methods of a dataset take it.

    Raises:
        TypeError: ``fn`` cannot be called, or arguments are no list or no dict.
        ConfigurationError: ``concurrency`` is no number of processes, or there are arguments of a
            class and ``fn`` is none.
    """
    if not callable(fn):
        raise TypeError(f"{fn!r} is no function and no class that can be called")
    function = UserFunction(
        fn,
        _positional("fn_args", args),
        _named("fn_kwargs", kwargs),
        constructor_args=_positional("fn_constructor_args", constructor_args),
        constructor_kwargs=_named("fn_constructor_kwargs", constructor_kwargs),
        concurrency=_processes(concurrency),
    )
    if function.has_constructor_args and not inspect.isclass(fn):
        raise ConfigurationError(
            "fn_constructor_args and fn_constructor_kwargs are arguments of a class, "
            f"and {function.name} is none"
        )
    return function


def _positional(name: str, given: Iterable[Any] | None) -> tuple[Any, ...]:
    if given is None:
        return ()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a list or a tuple, not {type(given).__name__}")
    return tuple(given)


def _named(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a dict of names and values, not {type(given).__name__}")
    for key in given:
        if not isinstance(key, str):
            raise TypeError(f"{name}: {key!r} is no name of an argument")
    return dict(given)


def _processes(concurrency: int | tuple[int, int] | None) -> int:
    if concurrency is None:
        return 0
    if not isinstance(concurrency, tuple):
        return check_count("concurrency", concurrency)
    counts = [check_count("concurrency", one) for one in concurrency]
    if len(counts) != 2 or counts[0] > counts[1]:  # noqa: PLR2004
        raise ConfigurationError(
            f"concurrency={concurrency!r}: a tuple has the fewest and the most processes"
        )
    return counts[1]


def check_count(name: str, value: Any, lowest: int = 1) -> int:
    """Return an integer that is at least ``lowest``, also one of numpy's; refuse anything else."""
    is_integer = hasattr(value, "__index__") and not isinstance(value, bool)
    if not is_integer or operator.index(value) < lowest:
        raise ConfigurationError(f"{name}={value!r}: must be an integer of at least {lowest}")
    return operator.index(value)


def check_seed(name: str, seed: Any) -> int:
    """Return the seed that None stands for, or one of 0 or more; refuse anything else.

    It is not drawn: an order must be the same in every process, and after a restart.
    """
    return 0 if seed is None else check_count(f"{name}(seed)", seed, lowest=0)
