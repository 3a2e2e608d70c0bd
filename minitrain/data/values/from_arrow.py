"""Arrow's columns as numpy arrays, DataFrames and Python values: always copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from minitrain.data.values.types import (
    ObjectType,
    RaggedTensorType,
    object_array,
    objects_from,
    ragged_tensors_from,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "concat_arrays",
    "even_lists",
    "numpy_from_column",
    "numpy_from_table",
    "pandas_from_table",
    "python_list",
    "rows_from_table",
]

_ROWS_AT_A_TIME = 4096
_LARGE_BYTES = 1 << 16


def numpy_from_table(table: pa.Table) -> dict[str, np.ndarray]:
    """Return a table as arrays that are the caller's own, contiguous and writable."""
    return {
        name: numpy_from_column(column)
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def numpy_from_column(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as an array that is the caller's own.

    ===========================  ==============================================================
    Arrow                        numpy
    ===========================  ==============================================================
    numbers, booleans            the same; with nulls float, NaN for null
    timestamp, date, duration    datetime64, timedelta64; NaT for null
    tensors, fixed-size lists    an array of more dimensions; with nulls objects
    ragged tensors, lists        objects, each an array; None for null
    dictionary                   its values
    anything else                objects; None for null
    ===========================  ==============================================================
    """
    read = _reader(column.type)
    if column.num_chunks > 1:
        return concat_arrays([read(chunk) for chunk in column.chunks])
    array = read(column.chunk(0) if column.num_chunks else column.combine_chunks())
    # What is Arrow's own memory cannot be written to, and numpy says so.
    return array if array.flags.writeable else _copied(array)


def _copied(array: np.ndarray) -> np.ndarray:
    """Return a copy in memory of Arrow's allocator, which gives out again what it was given back.

    Large arrays of numpy's own lie in pages that are new from the kernel each time; to have these
    takes several times longer than to copy the numbers.
    """
    if array.dtype.hasobject or array.nbytes < _LARGE_BYTES:
        return array.copy()
    memory = np.frombuffer(pa.allocate_buffer(array.nbytes), np.uint8)
    copy = memory.view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def _reader(type_: pa.DataType) -> Callable[[pa.Array], np.ndarray]:
    """Return what reads an array of this type; what that returns may be Arrow's own memory."""
    reader = _READERS.get(type_.id)
    if reader is not None:
        return reader
    if isinstance(type_, pa.FixedShapeTensorType):
        return _tensors
    if isinstance(type_, RaggedTensorType):
        return _ragged_tensors
    if isinstance(type_, ObjectType):
        return _objects
    return _python_values


def _plain(array: pa.Array) -> np.ndarray:
    return np.asarray(array.to_numpy(zero_copy_only=False))


def _numbers(array: pa.Array) -> np.ndarray:
    """Return numbers as they lie in memory; ``to_numpy()`` would import pandas."""
    data = array.buffers()[1]
    if array.null_count or data is None or not data.size:
        return _plain(array)
    dtype = np.dtype(array.type.to_pandas_dtype())
    numbers = np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)
    numbers.flags.writeable = False
    return numbers


def _booleans(array: pa.Array) -> np.ndarray:
    return _plain(array.cast(pa.float64()) if array.null_count else array)


def _dictionary(array: pa.Array) -> np.ndarray:
    return _values(array.dictionary_decode())


def _python_values(array: pa.Array) -> np.ndarray:
    return object_array(python_list(array))


def python_list(array: pa.Array) -> list[Any]:
    """Return an array's values as Python's; tensors as numpy's."""
    if isinstance(array.type, pa.FixedShapeTensorType):  # to_pylist() would flatten them
        return list(numpy_from_column(pa.chunked_array([array])))
    if not pa.types.is_struct(array.type):
        return list(array.to_pylist())
    names = [field.name for field in array.type]
    columns = [python_list(array.field(index)) for index in range(len(names))]
    valid = array.is_valid().to_pylist()
    return [
        dict(zip(names, (column[row] for column in columns), strict=True)) if ok else None
        for row, ok in enumerate(valid)
    ]


def _objects(array: pa.Array) -> np.ndarray:
    return objects_from(array.storage)


def _values(array: pa.Array) -> np.ndarray:
    """Return an array as numpy's, the caller's own: parts of it are handed out."""
    return numpy_from_column(pa.chunked_array([array]))


def _ragged_tensors(array: pa.Array) -> np.ndarray:
    data = array.storage.field("data")
    return ragged_tensors_from(array.storage, _values(_inside(data)))


def _inside(lists: pa.Array) -> pa.Array:
    first, last = lists.offsets[0].as_py(), lists.offsets[-1].as_py()
    return lists.values.slice(first, last - first)


def _lists(array: pa.Array) -> np.ndarray:
    offsets = array.offsets.to_numpy() - array.offsets[0].as_py()
    values = _values(_inside(array))
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    return object_array(
        [
            values[start:stop] if ok else None
            for start, stop, ok in zip(
                offsets[:-1].tolist(), offsets[1:].tolist(), valid.tolist(), strict=True
            )
        ]
    )


def even_lists(column: pa.ChunkedArray) -> np.ndarray | None:
    """Return a column of lists of one length as an array of two dimensions; None: it is none."""
    if _READERS.get(column.type.id) is not _lists or column.null_count or not len(column):
        return None
    lists = column.combine_chunks() if column.num_chunks > 1 else column.chunk(0)
    if isinstance(lists, pa.ChunkedArray):  # too large for offsets of 32 bits
        return None
    offsets = lists.offsets.to_numpy()
    size = int(offsets[1] - offsets[0])
    if (np.diff(offsets) != size).any():
        return None
    values = _values(_inside(lists))
    return values.reshape(len(lists), size, *values.shape[1:]) if values.dtype != object else None


def _fixed_size_lists(array: pa.Array) -> np.ndarray:
    values = _values(array.flatten())
    return _rows(array, values, array.type.list_size, *values.shape[1:])


def _tensors(array: pa.Array) -> np.ndarray:
    storage, type_ = array.storage, array.type
    values = storage.flatten()
    values = _reader(values.type)(values)
    if type_.permutation is not None:
        # Their dimensions lie in another order than they are meant in.
        values = values.reshape(-1, *type_.shape)
        values = values.transpose(0, *(axis + 1 for axis in type_.permutation))
        return _rows(storage, np.ascontiguousarray(values), *values.shape[1:])
    return _rows(storage, values, *type_.shape)


def _rows(lists: pa.FixedSizeListArray, values: np.ndarray, *shape: int) -> np.ndarray:
    """Return rows with the values of the lists that are not null; if some are, None for those."""
    rows = values.reshape(len(lists) - lists.null_count, *shape)
    if not lists.null_count:
        return rows
    given = iter(rows if rows.flags.writeable else rows.copy())
    return object_array([next(given) if ok else None for ok in lists.is_valid().to_pylist()])


_NUMBERS = (
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
)
_PLAIN = (
    *(pa.date32(), pa.date64(), pa.timestamp("s"), pa.duration("s")),
    *(pa.string(), pa.large_string()),
)
_READERS: dict[int, Callable[[pa.Array], np.ndarray]] = {
    **{type_.id: _plain for type_ in _PLAIN},
    **{type_.id: _numbers for type_ in _NUMBERS},
    pa.binary().id: _python_values,
    pa.large_binary().id: _python_values,
    pa.bool_().id: _booleans,
    pa.dictionary(pa.int8(), pa.int8()).id: _dictionary,
    pa.list_(pa.int8()).id: _lists,
    pa.large_list(pa.int8()).id: _lists,
    pa.list_(pa.int8(), 1).id: _fixed_size_lists,
}
"""By the number of a type: there is one for each column of each batch to find."""


def concat_arrays(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rows of several arrays in one; of objects if their shapes differ."""
    arrays = [array for array in arrays if len(array)] or list(arrays[:1])
    if len({array.shape[1:] for array in arrays}) > 1:
        arrays = [array if array.dtype == object else object_array(list(array)) for array in arrays]
    return np.concatenate(arrays)


def pandas_from_table(table: pa.Table) -> pd.DataFrame:
    """Return a table as a DataFrame; a dictionary is a category, a tensor an array in each row."""
    import pandas as pd

    columns = {name: _series(table.column(name)) for name in table.column_names}
    return pd.DataFrame(columns, index=pd.RangeIndex(table.num_rows), copy=False)


def _series(column: pa.ChunkedArray) -> pd.Series[Any]:
    import pandas as pd

    kinds, type_ = pa.types, column.type
    if isinstance(type_, pa.BaseExtensionType) or kinds.is_nested(type_):
        array = numpy_from_column(column)
        rows = array if array.dtype == object and array.ndim == 1 else object_array(list(array))
        return pd.Series(rows, dtype=object, copy=False)
    if kinds.is_integer(type_) or kinds.is_floating(type_) or kinds.is_boolean(type_):
        return pd.Series(numpy_from_column(column), copy=False)
    series: pd.Series[Any] = column.to_pandas()
    return series.copy()


def rows_from_table(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield each row: Python's own numbers, texts, times, lists and dicts; tensors are arrays."""
    names = table.column_names
    if not names:
        yield from ({} for _ in range(table.num_rows))
        return
    for start in range(0, table.num_rows, _ROWS_AT_A_TIME):  # who wants one row waits for few
        part = table.slice(start, _ROWS_AT_A_TIME)
        for values in zip(*map(_python_column, part.columns), strict=True):
            yield dict(zip(names, values, strict=True))


def _python_column(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())  # pyarrow < 18 gives numpy's
    return [value for chunk in column.chunks for value in python_list(chunk)]
