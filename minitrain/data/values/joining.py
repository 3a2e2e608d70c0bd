"""Tables of rows that belong together, though a column may have another type in each of them.

What a user's function returns gets its types batch by batch: a column is null in one and has
numbers in another, its tensors have one shape in one and several in another. Where blocks end is
not for the user to see, so whatever brings several tables together joins them by the rules here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from minitrain.data.values.from_arrow import numpy_from_column, python_list
from minitrain.data.values.types import (
    ObjectType,
    RaggedTensorType,
    pickled_array,
    ragged_tensor_array,
)
from minitrain.exceptions import SchemaMismatchError

__all__ = ["common_schema", "concat_tables", "converted", "converted_column"]


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of several tables in one; what has one type in all of them is not copied.

    Raises:
        SchemaMismatchError: A value does not fit in the type that its column gets.
    """
    schema = tables[0].schema
    if not all(table.schema.equals(schema) for table in tables):
        schema = common_schema(tables)
        tables = [converted(table, schema) for table in tables]
    return pa.concat_tables(tables)


def common_schema(tables: Sequence[pa.Table]) -> pa.Schema:
    """Return the columns of several tables together, each with a type that takes all its values.

    Types are promoted as Arrow does: null to any, integers to floats; so are booleans beside
    floats, which they are in a batch with nulls. Integers are unsigned ones of 64 bits if some of
    them are, and none is negative. Tensors of several shapes become ragged, dictionaries and other
    columns their values, and values that do not fit together are pickled, as they are in one batch.
    """
    columns: dict[str, list[pa.ChunkedArray]] = {}
    fields: dict[str, pa.Field] = {}
    for table in tables:
        for field in table.schema:
            fields.setdefault(field.name, field)
            columns.setdefault(field.name, []).append(table.column(field.name))
    return pa.schema(
        [
            fields[name].with_type(_type_of_all(parts)).with_nullable(nullable=True)
            for name, parts in columns.items()
        ],
        metadata=tables[0].schema.metadata,
    )


def converted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of a common schema; one that it lacks is null.

    Raises:
        SchemaMismatchError: A value does not fit in the type that its column gets.
    """
    columns = [_column_of(table, field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column_of(table: pa.Table, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    column = table.column(field.name)
    try:
        return converted_column(column, field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaMismatchError(
            f"the types of column {field.name!r} do not fit together: it is {column.type} in some "
            f"rows, and this cannot become {field.type}, which suits the others: {error}. Have the "
            "function return one type, with astype() or cast(); batch_format='pyarrow' leaves "
            "integers with nulls what they are"
        ) from error


def converted_column(column: pa.ChunkedArray, type_: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Return a column with the type that it gets beside others.

    Raises:
        pyarrow.ArrowInvalid: A value does not fit in it.
        pyarrow.ArrowNotImplementedError: No value does.
    """
    if column.type == type_:
        return column
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), type_)
    if isinstance(type_, ObjectType):
        return _pickled(column)
    if isinstance(type_, RaggedTensorType) and _is_of_tensors(column.type):
        return _ragged(column, type_.value_type)
    return _castable(column, type_).cast(type_)


# ---------------------------------------------------------------------- types
def _type_of_all(columns: Sequence[pa.ChunkedArray]) -> pa.DataType:
    # In order of appearance, which the fields of a struct of several get too.
    types = [type_ for type_ in dict.fromkeys(one.type for one in columns) if type_ != pa.null()]
    if len(types) < 2:  # noqa: PLR2004 - nothing to join
        return types[0] if types else pa.null()
    if any(map(pa.types.is_floating, types)):
        types = [pa.uint8() if pa.types.is_boolean(type_) else type_ for type_ in types]
    promoted = _promoted(types)
    if promoted is None:
        return _type_of_values(types)
    if promoted == pa.int64() and pa.uint64() in types and not _any_negative(columns):
        return pa.uint64()  # hashes, of which some batches have only small ones
    return promoted


def _promoted(types: Iterable[pa.DataType]) -> pa.DataType | None:
    schemas = [pa.schema([("", type_)]) for type_ in types]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None


def _type_of_values(types: Sequence[pa.DataType]) -> pa.DataType:
    if all(map(_is_of_tensors, types)):
        value_type = _promoted([type_.value_type for type_ in types])
        if value_type is not None:
            return RaggedTensorType(value_type)
    values = [type_.value_type if pa.types.is_dictionary(type_) else type_ for type_ in types]
    return _promoted(values) or ObjectType()


def _is_of_tensors(type_: pa.DataType) -> bool:
    return isinstance(type_, pa.FixedShapeTensorType | RaggedTensorType)


def _any_negative(columns: Sequence[pa.ChunkedArray]) -> bool:
    import pyarrow.compute as pc

    signed = (column for column in columns if pa.types.is_signed_integer(column.type))
    return any(pc.any(pc.less(column, 0)).as_py() for column in signed)


# ---------------------------------------------------------------------- values
def _ragged(column: pa.ChunkedArray, value_type: pa.DataType) -> pa.Array:
    tensors = list(numpy_from_column(column))
    flat = [tensor.reshape(-1) for tensor in tensors if tensor is not None]
    values = pa.array(np.concatenate(flat)) if flat else pa.nulls(0)
    return ragged_tensor_array(tensors, values.cast(value_type))


def _pickled(column: pa.ChunkedArray) -> pa.Array:
    return pickled_array(value for chunk in column.chunks for value in python_list(chunk))


def _castable(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """Return what Arrow can cast: of dictionaries their values, of booleans numbers."""
    if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(type_):
        return column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type) and pa.types.is_floating(type_):
        return column.cast(pa.uint8())  # straight to a float of 16 bits it does not go
    return column
