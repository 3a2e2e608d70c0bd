"""Datasets of what is in memory already, or comes from another library."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from minitrain.data.context import DataContext
from minitrain.data.dataset import from_source
from minitrain.data.files.schemas import differences, fit
from minitrain.data.plans.functions import check_count
from minitrain.data.plans.sources import RangeSource, Rows, RowsSource, StreamSource, TableSource
from minitrain.data.values import table_from_batch, table_from_rows, without_views
from minitrain.exceptions import ConfigurationError, SchemaMismatchError

if TYPE_CHECKING:
    from minitrain.data.dataset import Dataset

__all__ = [
    "from_arrow",
    "from_huggingface",
    "from_items",
    "from_numpy",
    "from_pandas",
    "from_tf",
    "from_torch",
    "range",
]

_ITEMS_AT_A_TIME = 64
_STREAMED_ROWS = 1024
_range = range


def range(n: int, *, override_num_blocks: int | None = None) -> Dataset:  # noqa: A001 - as in ray
    """Return a dataset of the integers below ``n``, in a column ``id``.

    Args:
        n: How many.
        override_num_blocks: How many blocks to make.

    Raises:
        ConfigurationError: ``n`` is negative.

    Example:
        >>> import minitrain.data
        >>> minitrain.data.range(3).take_all()
        [{'id': 0}, {'id': 1}, {'id': 2}]
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise TypeError(f"range(n={n!r}): must be an int")
    if n < 0:
        raise ConfigurationError(f"range(n={n}): must not be negative")
    return from_source(RangeSource(n=int(n), number=_blocks(override_num_blocks)))


def from_items(items: Sequence[Any], *, override_num_blocks: int | None = None) -> Dataset:
    """Return a dataset with a row for each element of a list.

    Args:
        items: Dicts, whose keys become columns; anything else goes into a column ``item``.
        override_num_blocks: How many blocks to make.

    Raises:
        TypeError: It is no list of items, but a table or a dict of columns.
    """
    if isinstance(items, Mapping | str | bytes) or _has_columns(items) or not _has_elements(items):
        raise TypeError(
            f"from_items: {type(items).__name__} is no list of items; from_numpy takes a dict of "
            "columns, from_pandas a frame, from_arrow a table"
        )
    table = _table_of_items(list(items), "from_items")
    return _of_tables("from_items", [table], override_num_blocks)


def from_pandas(dfs: Any, *, override_num_blocks: int | None = None) -> Dataset:
    """Return a dataset of a ``pandas.DataFrame``, or of several with the same columns.

    Args:
        dfs: One or a list of them.
        override_num_blocks: How many blocks to make.

    Raises:
        SchemaMismatchError: They have different columns.
        TypeError: One is no frame.
    """
    frames = list(dfs) if isinstance(dfs, list | tuple) else [dfs]
    for frame in frames:
        if not (_has_columns(frame) and hasattr(frame, "iloc")):
            raise TypeError(f"from_pandas: {type(frame).__name__} is no pandas.DataFrame")
    tables = [table_from_batch(frame, "from_pandas") for frame in frames]
    return _of_tables("from_pandas", tables, override_num_blocks)


def from_numpy(
    ndarrays: np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray],
    *,
    override_num_blocks: int | None = None,
) -> Dataset:
    """Return a dataset whose rows are the first axis of an array.

    Args:
        ndarrays: An array, or several that follow one another, for a column ``data``; or a dict
            of columns.
        override_num_blocks: How many blocks to make.

    Raises:
        SchemaMismatchError: Arrays that follow one another have different types or shapes.
        TypeError: It is nothing of that, or an array without a dimension.
    """
    if isinstance(ndarrays, Mapping):
        batches: list[dict[str, Any]] = [dict(ndarrays)]
    else:
        batches = [{"data": array} for array in _arrays(ndarrays)]
    tables = [table_from_batch(batch, "from_numpy") for batch in batches]
    return _of_tables("from_numpy", tables, override_num_blocks)


def from_arrow(tables: Any, *, override_num_blocks: int | None = None) -> Dataset:
    """Return a dataset of Arrow data.

    Args:
        tables: A ``pyarrow.Table``, a ``RecordBatch``, a list of them, a ``RecordBatchReader``, or
            what speaks Arrow's PyCapsule interface: a frame of polars or pandas, a relation of
            duckdb. What can only be read once is read now.
        override_num_blocks: How many blocks to make.

    Raises:
        ConfigurationError: Several columns have one name.
        SchemaMismatchError: Tables of a list have different columns.
        TypeError: It is nothing of that.
    """
    several = tables if isinstance(tables, list | tuple) else [tables]
    found = [_arrow_table(one) for one in several]
    twice = [name for one in found for name, n in Counter(one.column_names).items() if n > 1]
    if twice:
        raise ConfigurationError(f"from_arrow: there are several columns named {min(twice)!r}")
    return _of_tables("from_arrow", found, override_num_blocks)


def from_huggingface(dataset: Any, *, override_num_blocks: int | None = None) -> Dataset:
    """Return a dataset of a Hugging Face ``datasets.Dataset`` or ``IterableDataset``.

    The former's files stay where they are, mapped into memory; rows are fetched when they are
    needed, in the order that ``select`` or ``shuffle`` gave them. The latter is streamed, as a
    single block, and again in each epoch.

    Args:
        dataset: One of the two; of a ``DatasetDict`` take one split.
        override_num_blocks: How many blocks to make of a ``Dataset``.
    """
    if isinstance(dataset, Mapping):
        raise TypeError(f"from_huggingface: a DatasetDict has splits; give one: {list(dataset)}")
    if hasattr(dataset, "data") and hasattr(dataset, "__len__"):
        rows = _HuggingFaceRows(dataset.with_format("arrow"))
        number = _blocks(override_num_blocks)
        return from_source(RowsSource(kind="from_huggingface", items=rows, number=number))
    if not hasattr(dataset, "with_format"):
        raise TypeError(f"from_huggingface: {type(dataset).__name__} is no datasets.Dataset")
    return from_source(StreamSource(kind="from_huggingface", open=_HuggingFaceStream(dataset)))


def from_torch(
    dataset: Any,
    local_read: bool = False,
    *,
    override_num_blocks: int | None = None,
) -> Dataset:
    """Return a dataset of a ``torch.utils.data.Dataset``, in a column ``item``.

    Args:
        dataset: With a length and elements: they are fetched when they are needed. An
            ``IterableDataset`` is read to its end now.
        local_read: Accepted as in ray.data; data is always read by the process that needs it.
        override_num_blocks: How many blocks to make.

    Raises:
        TypeError: It is neither.
    """
    del local_read
    if isinstance(dataset, Mapping) or not _has_elements(dataset):
        raise TypeError(f"from_torch: {type(dataset).__name__} is no torch.utils.data.Dataset")
    if not _is_stream(dataset) and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        number = _blocks(override_num_blocks)
        return from_source(RowsSource(kind="from_torch", items=_Items(dataset), number=number))
    table = table_from_rows([{"item": item} for item in dataset], "from_torch")
    return _of_tables("from_torch", [table], override_num_blocks)


def from_tf(dataset: Any, *, override_num_blocks: int | None = None) -> Dataset:
    """Return a dataset of a ``tf.data.Dataset``, which is read to its end now.

    Args:
        dataset: Of dicts, whose keys become columns; anything else goes into a column ``item``.
        override_num_blocks: How many blocks to make.

    Raises:
        TypeError: It is none.
    """
    if not hasattr(dataset, "as_numpy_iterator"):
        raise TypeError(f"from_tf: {type(dataset).__name__} is no tf.data.Dataset")
    table = _table_of_items(list(dataset.as_numpy_iterator()), "from_tf")
    return _of_tables("from_tf", [table], override_num_blocks)


def _blocks(number: int | None) -> int | None:
    return None if number is None else check_count("override_num_blocks", number)


def _has_elements(given: Any) -> bool:
    return hasattr(given, "__iter__") or hasattr(given, "__getitem__")


def _has_columns(given: Any) -> bool:
    """Return whether it is a table: of pandas, polars, Arrow or duckdb, or a dataset."""
    return hasattr(given, "columns")


def _is_stream(dataset: Any) -> bool:
    """Return whether torch has no elements of it, though it may have a length."""
    torch_data = sys.modules.get("torch.utils.data")
    return torch_data is not None and isinstance(dataset, torch_data.IterableDataset)


def _arrays(given: Any) -> list[np.ndarray]:
    is_one = isinstance(given, np.ndarray) or not _has_elements(given)
    arrays = [np.asarray(array) for array in ([given] if is_one else given)]
    if not all(array.ndim for array in arrays):
        raise TypeError(
            f"from_numpy: {type(given).__name__} is no array with rows, no list of such arrays and "
            "no dict of columns"
        )
    return arrays


def _of_tables(kind: str, tables: Sequence[pa.Table], number: int | None) -> Dataset:
    if any(table.num_rows and not table.num_columns for table in tables):
        raise ConfigurationError(f"{kind}: rows need at least one column")
    joined = _joined(kind, tables)
    return from_source(TableSource(kind=kind, table=joined, number=_blocks(number)))


def _table_of_items(items: list[Any], what: str) -> pa.Table:
    if not items:
        return pa.table({})
    if all(isinstance(item, Mapping) for item in items):
        return table_from_rows(items, what)
    return table_from_rows([{"item": item} for item in items], what)


def _joined(kind: str, tables: Sequence[pa.Table]) -> pa.Table:
    if not tables:
        return pa.table({})
    first = tables[0]
    for number, table in enumerate(tables):
        problem = differences(table.schema, first.schema, extra=True)
        if problem:
            raise SchemaMismatchError(
                f"{kind}: table {number} and the first have different columns: {problem}"
            )
    return pa.concat_tables([fit(table, first.schema) for table in tables])


def _arrow_table(given: Any) -> pa.Table:
    if isinstance(given, pa.RecordBatchReader):
        given = given.read_all()
    elif isinstance(given, pa.RecordBatch):
        given = pa.Table.from_batches([given])
    elif not isinstance(given, pa.Table):
        speaks = hasattr(given, "__arrow_c_stream__") or hasattr(given, "__arrow_c_array__")
        if not speaks:
            raise TypeError(
                f"from_arrow: {type(given).__name__} is no Arrow table and does not speak Arrow's "
                "PyCapsule interface (__arrow_c_stream__)"
            )
        given = _imported(given)
    return without_views(given)


def _imported(given: Any) -> pa.Table:
    try:
        return pa.table(given)
    except pa.ArrowException as error:
        raise TypeError(
            f"from_arrow: pyarrow makes no table of this {type(given).__name__}: {error}"
        ) from error


@dataclass(frozen=True, eq=False)
class _Items(Rows):
    """The elements of a torch dataset."""

    items: Any

    def __len__(self) -> int:
        return len(self.items)

    def table(self, start: int, stop: int) -> pa.Table:
        rows = [{"item": self.items[number]} for number in _range(start, stop)]
        return table_from_rows(rows, "from_torch")

    @property
    def at_a_time(self) -> int:
        return _ITEMS_AT_A_TIME


@dataclass(frozen=True, eq=False)
class _HuggingFaceRows(Rows):
    """The rows of a Hugging Face dataset, as Arrow."""

    dataset: Any

    def __len__(self) -> int:
        return int(self.dataset.num_rows)

    @property
    def size_bytes(self) -> int:  # type: ignore[override]
        data = self.dataset.data
        return int(data.nbytes * len(self) // max(1, data.num_rows))

    def table(self, start: int, stop: int) -> pa.Table:
        found: pa.Table = self.dataset[start:stop]
        return _without_metadata(found)

    @property
    def at_a_time(self) -> int:
        row = max(1, self.size_bytes // max(1, len(self)))
        return max(1, DataContext.get_current().target_table_bytes // row)


@dataclass(frozen=True, eq=False)
class _HuggingFaceStream:
    """Begins to stream a Hugging Face dataset."""

    dataset: Any

    def __call__(self) -> Iterator[pa.Table]:
        batches: Iterable[pa.Table] = self.dataset.with_format("arrow").iter(_STREAMED_ROWS)
        yield from map(_without_metadata, batches)


def _without_metadata(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)
