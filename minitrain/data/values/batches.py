"""Batches in the format a user asks for, and tables from what a user returns."""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from minitrain.data.values.from_arrow import concat_arrays, numpy_from_table, pandas_from_table
from minitrain.data.values.to_arrow import (
    array_from_list,
    array_from_numpy,
    is_tensor,
    numpy_from_tensor,
)
from minitrain.data.values.views import without_views
from minitrain.exceptions import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "batch_from_table",
    "check_format",
    "concat_numpy",
    "slice_numpy",
    "table_from_batch",
    "table_from_rows",
]

_FORMATS = ("default", "numpy", "pandas", "pyarrow", None)


def check_format(batch_format: str | None) -> None:
    """Refuse a format that there is not.

    Raises:
        ConfigurationError: It is none of "default", "numpy", "pandas", "pyarrow" and None.
    """
    if batch_format in _FORMATS:
        return
    names = [name for name in _FORMATS if name]
    near = difflib.get_close_matches(str(batch_format), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"give one of {names}, or None"
    raise ConfigurationError(f"batch_format={batch_format!r}: {hint}")


def batch_from_table(
    table: pa.Table, batch_format: str | None
) -> dict[str, np.ndarray] | pd.DataFrame | pa.Table:
    """Return a table's rows in a format; "default" is "numpy", None is "pyarrow".

    A batch in another format than Arrow's is a copy that the caller may write to.

    Raises:
        ConfigurationError: There is no such format.
    """
    check_format(batch_format)
    match batch_format:
        case "default" | "numpy":
            return numpy_from_table(table)
        case "pandas":
            return pandas_from_table(table)
        case _:
            return table


def table_from_batch(batch: Any, what: str) -> pa.Table:
    """Return what a user's function returned for a batch as a table.

    Args:
        batch: A dict of arrays, tensors of any framework or lists; a DataFrame, whose index is
            left out; a table or a record batch of Arrow.
        what: Who returned it, for messages: ``map_batches(add_one)``.

    Raises:
        TypeError: It is something else, or it holds what can neither be in Arrow nor be pickled.
        ValueError: Its columns have different lengths, or the same name.
    """
    if isinstance(batch, pa.RecordBatch):
        batch = pa.Table.from_batches([batch])
    if isinstance(batch, pa.Table):
        _check_names(batch.column_names, what)
        return without_views(batch)
    if _is_from_pandas(batch, "DataFrame"):
        names = [str(name) for name in batch.columns]
        columns = [(name, batch.iloc[:, index]) for index, name in enumerate(names)]
    elif isinstance(batch, Mapping):
        columns = list(batch.items())
    else:
        raise TypeError(
            f"{what} returned {_a(batch)}, not a batch: a dict of arrays, a pandas.DataFrame or a "
            "pyarrow.Table"
        )
    _check_names([name for name, _ in columns], what)
    arrays = {name: _column(name, values, what) for name, values in columns}
    _check_lengths(arrays, what)
    return _table(arrays, len(batch) if _is_from_pandas(batch, "DataFrame") else 0)


def _table(arrays: Mapping[str, Any], rows: int) -> pa.Table:
    """Return a table; without columns it has this number of rows all the same."""
    if arrays:
        return without_views(pa.table(dict(arrays)))
    return pa.table({"": pa.nulls(rows)}).select([])


def _is_from_pandas(value: Any, *names: str) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, tuple(getattr(pandas, name) for name in names))


def _a(value: Any) -> str:
    name = type(value).__name__
    if value is None:
        return "None"
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def _check_names(names: Sequence[Any], what: str) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{what} returned a column named {name!r}: names are strings")
    twice = {name for name, number in Counter(names).items() if number > 1}
    if twice:
        raise ValueError(f"{what} returned two columns named {min(twice)!r}")


def _check_lengths(arrays: Mapping[str, Any], what: str) -> None:
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{name!r} has {len(array):,} rows" for name, array in arrays.items())
        raise ValueError(f"{what} returned columns of different lengths: {lengths}")


def _column(name: str, values: Any, what: str) -> pa.Array | pa.ChunkedArray:
    try:
        return _array(values)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{what} returned a column {name!r} that cannot be one: {error}"
        ) from error


def _array(values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if _is_from_pandas(values, "Series", "Index"):
        return _array_from_pandas(values)
    if is_tensor(type(values)):
        return array_from_numpy(numpy_from_tensor(values))
    if isinstance(values, list | tuple):
        return array_from_list(values)
    raise TypeError(f"it is {_a(values)}, not an array or a list")


def _array_from_pandas(values: Any) -> pa.Array | pa.ChunkedArray:
    if _is_from_pandas(values.dtype, "SparseDtype"):
        values = values.astype(values.dtype.subtype)
    if values.dtype == object:
        return array_from_list(values.tolist())
    try:
        return pa.array(values, from_pandas=True)
    except pa.ArrowException:  # complex numbers, categories of several kinds
        return array_from_list(values.tolist())


def table_from_rows(rows: Sequence[Mapping[str, Any]], what: str) -> pa.Table:
    """Return a table with these rows; a row that lacks a column of others has null there.

    Args:
        rows: Dicts of column names to values.
        what: Who returned them, for messages.

    Raises:
        TypeError: One of them is no dict, or a value can neither be held by Arrow nor be pickled.
    """
    names: dict[str, None] = {}
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(
                f"{what} returned {_a(row)}, not a row: a dict of column names to values"
            )
        names.update(dict.fromkeys(row))
    _check_names(list(names), what)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return _table(
        {name: _column(name, values, what) for name, values in columns.items()}, len(rows)
    )


def concat_numpy(batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the rows of several batches in one.

    Arrays of different dtypes are promoted, of different shapes become arrays of objects.

    Raises:
        ValueError: They do not all have the same columns.
    """
    if not batches:
        return {}
    first = batches[0]
    for batch in batches:
        if batch.keys() != first.keys():
            raise ValueError(f"one batch has the columns {list(first)}, another {list(batch)}")
    if len(batches) == 1:
        return dict(first)
    return {name: concat_arrays([batch[name] for batch in batches]) for name in first}


def slice_numpy(batch: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    """Return the rows from ``start`` up to ``stop``: the same memory."""
    return {name: array[start:stop] for name, array in batch.items()}
