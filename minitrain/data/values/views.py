"""Strings and bytes that are views, for which most of pyarrow's functions have no kernel."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as pat

__all__ = ["plain_type", "without_views"]


def without_views(table: pa.Table) -> pa.Table:
    """Return a table whose strings and bytes have the layout that all of pyarrow's functions know.

    polars has views, and duckdb if it is asked to; other columns are not copied.
    """
    for index, one in enumerate(table.schema):
        plain = plain_type(one.type)
        if not plain.equals(one.type):
            column = table.column(index).cast(plain)
            table = table.set_column(index, one.with_type(plain), column)
    return table


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type without views in it."""
    if pat.is_string_view(kind):
        return pa.large_string()
    if pat.is_binary_view(kind):
        return pa.large_binary()
    if pat.is_dictionary(kind):
        return pa.dictionary(kind.index_type, plain_type(kind.value_type), kind.ordered)
    if pat.is_struct(kind):
        return pa.struct([_plain_field(one) for one in kind.fields])
    return _plain_list(kind)


def _plain_list(kind: pa.DataType) -> pa.DataType:
    if pat.is_map(kind):
        key, item = _plain_field(kind.key_field), _plain_field(kind.item_field)
        return pa.map_(key, item, kind.keys_sorted)
    if pat.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    if pat.is_large_list(kind):
        return pa.large_list(_plain_field(kind.value_field))
    if pat.is_list(kind):
        return pa.list_(_plain_field(kind.value_field))
    return kind  # lists that are views themselves are not cast: pyarrow 26 loses values of them


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(plain_type(field.type))
