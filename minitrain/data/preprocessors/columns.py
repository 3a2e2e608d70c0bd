"""Arrow columns as what preprocessors compute with, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minitrain.exceptions import ColumnError, TransformError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "array_of",
    "as_type_of",
    "codes",
    "column_of",
    "combined",
    "decoded",
    "float64",
    "floats",
    "is_list",
    "lists",
    "missing",
    "numbers",
    "present",
    "scaled_type",
    "tensor",
    "without_nan",
]


def column_of(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    """Return a column, or say which there are."""
    if name not in table.column_names:
        raise ColumnError(name, table.column_names, where)
    return table.column(name)


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return the column in one piece."""
    if isinstance(column, pa.Array):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.chunks else pa.array([], type=column.type)


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values of a dictionary-encoded column; any other column as it is."""
    if pa.types.is_dictionary(column.type):
        return pc.cast(column, column.type.value_type)
    return column


def without_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the column with nulls where it was NaN: both mean a missing value here."""
    if pa.types.is_floating(column.type):
        missing = pc.is_null(column, nan_is_null=True)
        return pc.if_else(missing, pa.scalar(None, column.type), column)
    return column


def missing(column: pa.ChunkedArray) -> int:
    """Return how many values are missing."""
    if pa.types.is_floating(column.type):
        return pc.sum(pc.is_null(column, nan_is_null=True)).as_py() or 0
    return int(column.null_count)


def present(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values that are not missing."""
    if pa.types.is_floating(column.type):
        return pc.filter(column, pc.invert(pc.is_null(column, nan_is_null=True)))
    return pc.drop_null(column) if column.null_count else column


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
        or types.is_null(kind)
    )


def float64(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Return a numeric column as float64, with its nulls.

    Raises:
        TransformError: It is not numeric.
    """
    column = decoded(column)
    if not _is_number(column.type):
        raise TransformError(f"{what} is of type {column.type}; it must be numeric")
    return pc.cast(column, pa.float64(), safe=False)  # large integers lose their last digits


def floats(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """Return a numeric column as a float64 array, NaN where it is null; not to be written to."""
    values: np.ndarray = float64(column, what).to_numpy()
    return values


def numbers(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """Return the values of a numeric column that are not missing.

    Raises:
        TransformError: It is not numeric, or holds infinite values: no statistics of it are of use.
    """
    values = floats(column, what)
    if len(values) and np.isnan(values.min()):
        values = values[~np.isnan(values)]
    if len(values) and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise TransformError(f"{what} holds infinite values; replace or filter them out first")
    return values


def scaled_type(kind: pa.DataType) -> pa.DataType:
    """Return the type a column of numbers has once it was computed with: float32 stays itself."""
    return kind if pa.types.is_float32(kind) or pa.types.is_float16(kind) else pa.float64()


def as_type_of(values: np.ndarray, column: pa.ChunkedArray) -> pa.Array:
    """Return computed values as a column like the one they come from: its precision, its nulls."""
    mask = pc.is_null(column).to_numpy() if column.null_count else None
    kind = scaled_type(column.type)
    return pa.array(values.astype(kind.to_pandas_dtype(), copy=False), type=kind, mask=mask)


def tensor(matrix: np.ndarray) -> pa.FixedShapeTensorArray:
    """Return the rows of a matrix as a column of vectors."""
    width = matrix.shape[1]
    flat = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    kind = pa.fixed_shape_tensor(flat.type, [width])
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, width))


def is_list(kind: pa.DataType) -> bool:
    """Return whether each row of such a column is a list or a vector."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return bool(kind.extension_name in {"arrow.fixed_shape_tensor", "minitrain.ragged_tensor"})
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def lists(column: pa.ChunkedArray) -> pa.Array:
    """Return a column of lists or vectors as an Arrow array of lists."""
    array = combined(column)
    if isinstance(array, pa.ExtensionArray):
        ragged = array.type.extension_name == "minitrain.ragged_tensor"
        array = array.storage.field("data") if ragged else array.storage
    return array


def array_of(values: Sequence[Any]) -> pa.Array:
    """Return values that came from one column as an array that loses nothing of them.

    Arrow would take any integer for an int64, and pandas' times for microseconds.
    """
    try:
        array = pa.array(values)
    except OverflowError:
        return pa.array(values, pa.uint64())
    kind, types = array.type, pa.types
    if types.is_timestamp(kind) and any(getattr(value, "nanosecond", 0) for value in values):
        return pa.array(values, pa.timestamp("ns", kind.tz))
    if types.is_duration(kind) and any(getattr(value, "nanoseconds", 0) for value in values):
        return pa.array(values, pa.duration("ns"))
    return array


def codes(column: pa.ChunkedArray, categories: Mapping[Any, int], what: str) -> pa.Array:
    """Return the place of each value among the categories, which are in order; null if nowhere."""
    if any(isinstance(category, tuple) for category in categories):
        found = [
            None if row is None else categories.get(tuple(row)) for row in lists(column).to_pylist()
        ]
        return pa.array(found, type=pa.int32())
    values, known = _comparable(column, array_of(list(categories)), what)
    return combined(pc.index_in(values, value_set=known))


def _comparable(
    column: pa.ChunkedArray, known: pa.Array, what: str
) -> tuple[pa.ChunkedArray, pa.Array]:
    """Return values and categories as one type: an integer column may come back as floats."""
    values = without_nan(decoded(column))
    if pa.types.is_null(values.type):
        return pc.cast(values, known.type), known
    if _is_text(values.type) == _is_text(known.type):
        for both in (known.type, values.type):
            try:
                return pc.cast(values, both), pc.cast(known, both)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                continue  # 1.5 is no integer, but each integer is a float
    raise TransformError(f"{what} is of type {values.type}, but was of type {known.type} in fit()")


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind))
