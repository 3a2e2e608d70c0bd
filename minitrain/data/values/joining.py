"""Tables of rows that belong together, though a column may have another type in each of them.

What a user's function returns gets its types batch by batch: a column is null in one and has
numbers in another, its tensors have one shape in one and several in another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from minitrain.data.values.from_arrow import numpy_from_column, python_list
from minitrain.data.values.types import RaggedTensorType, pickled_array, ragged_tensor_array
from minitrain.exceptions import SchemaMismatchError

__all__ = ["concat_tables"]


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of several tables in one; what has one type in all of them is not copied.

    A column that some of them lack is null there. Types are promoted as Arrow does: null to any,
    integers to floats. Tensors of several shapes become ragged, dictionaries and other columns
    their values, and values that do not fit together are pickled, as they are in one batch.

    Raises:
        SchemaMismatchError: A value does not fit in the type that its column gets.
    """
    schema = tables[0].schema
    if all(table.schema.equals(schema) for table in tables):
        return pa.concat_tables(tables)
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        tables = _with_one_type(tables, name)
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowInvalid as error:
        raise SchemaMismatchError(
            f"the columns of two batches do not fit together: {error}"
        ) from error


def _with_one_type(tables: Sequence[pa.Table], name: str) -> Sequence[pa.Table]:
    types = {table.schema.field(name).type for table in tables if name in table.column_names}
    types -= {pa.null()}
    if len(types) < 2 or _common_type(types) is not None:  # noqa: PLR2004 - Arrow promotes them
        return tables
    convert = _conversion(types)
    return [_converted(table, name, convert) for table in tables]


def _common_type(types: Iterable[pa.DataType]) -> pa.DataType | None:
    schemas = [pa.schema([("", type_)]) for type_ in types]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None


def _conversion(types: set[pa.DataType]) -> Callable[[pa.ChunkedArray], pa.Array]:
    if all(isinstance(type_, pa.FixedShapeTensorType | RaggedTensorType) for type_ in types):
        value_type = _common_type({type_.value_type for type_ in types})
        if value_type is not None:
            return partial(_ragged, value_type=value_type)
    values = {type_.value_type if pa.types.is_dictionary(type_) else type_ for type_ in types}
    return _pickled if _common_type(values) is None else _decoded


def _converted(
    table: pa.Table, name: str, convert: Callable[[pa.ChunkedArray], pa.Array]
) -> pa.Table:
    index = table.schema.get_field_index(name)
    if index < 0 or table.schema.field(index).type == pa.null():
        return table
    return table.set_column(index, name, convert(table.column(index)))


def _ragged(column: pa.ChunkedArray, value_type: pa.DataType) -> pa.Array:
    tensors = list(numpy_from_column(column))
    flat = [tensor.reshape(-1) for tensor in tensors if tensor is not None]
    values = pa.array(np.concatenate(flat)) if flat else pa.nulls(0)
    return ragged_tensor_array(tensors, values.cast(value_type))


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    type_ = column.type
    return column.cast(type_.value_type) if pa.types.is_dictionary(type_) else column


def _pickled(column: pa.ChunkedArray) -> pa.Array:
    return pickled_array(value for chunk in column.chunks for value in python_list(chunk))
