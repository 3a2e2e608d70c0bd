"""Whether files have the same columns, and how to make them so where nothing is lost."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.types as pat

from minitrain.data.values import plain_type

__all__ = ["differences", "fit", "may_be_nan", "plain"]

_SHOWN = 5


def plain(schema: pa.Schema) -> pa.Schema:
    """Return names and types alone: metadata and nullability differ where nothing else does.

    Views are strings whose layout some of pyarrow's functions do not know; they are read as others.
    """
    return pa.schema([pa.field(one.name, plain_type(one.type)) for one in schema])


def differences(found: pa.Schema, wanted: pa.Schema, *, extra: bool) -> str:
    """Say what is the matter with a file's columns; nothing if they can be made to fit.

    Args:
        found: Those of the file.
        wanted: Those of the first file.
        extra: Whether there must be no others.
    """
    if found.equals(wanted):
        return ""
    problems = []
    for one in wanted:
        if one.name not in found.names:
            problems.append(f"column {one.name!r} is missing")
        elif not _can_become(found.field(one.name).type, one.type):
            mine = found.field(one.name).type
            problems.append(f"column {one.name!r} is {mine} instead of {one.type}")
    if extra:
        problems += [
            f"column {name!r} is extra" for name in found.names if name not in wanted.names
        ]
    more = f", and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    return ", ".join(problems[:_SHOWN]) + more


def fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of a schema, cast where that loses nothing.

    Raises:
        pa.ArrowInvalid: A value does not fit.
    """
    if table.schema.equals(schema, check_metadata=True):
        return table
    arrays = []
    for one in schema:
        array = table.column(one.name)
        arrays.append(array if array.type.equals(one.type) else array.cast(one.type))
    if not arrays:
        return table.select([])
    return pa.Table.from_arrays(arrays, schema=schema)


def may_be_nan(kind: pa.DataType) -> bool:
    """Whether a value, or a part of one, is a floating number."""
    if isinstance(kind, pa.BaseExtensionType):
        return may_be_nan(kind.storage_type)
    if pat.is_dictionary(kind):
        return may_be_nan(kind.value_type)
    if pat.is_struct(kind):
        return any(may_be_nan(one.type) for one in kind)
    return bool(pat.is_floating(kind))


def _can_become(mine: pa.DataType, other: pa.DataType) -> bool:
    """Whether a cast is exact, or fails: floats never lose digits."""
    if mine.equals(other) or pat.is_null(mine):
        return True
    if pat.is_dictionary(mine):
        return _can_become(mine.value_type, other)
    if pat.is_integer(mine):
        return bool(pat.is_integer(other) or pat.is_floating(other))
    if pat.is_floating(mine):
        return bool(pat.is_floating(other) and mine.bit_width <= other.bit_width)
    if pat.is_timestamp(mine):
        return bool(pat.is_timestamp(other) and mine.tz == other.tz)
    if _is_any(mine, [pat.is_list, pat.is_large_list]):
        lists = _is_any(other, [pat.is_list, pat.is_large_list])
        return lists and _can_become(mine.value_type, other.value_type)
    alike = [
        [pat.is_string, pat.is_large_string, pat.is_string_view],
        [pat.is_binary, pat.is_large_binary, pat.is_binary_view],
        [pat.is_date32, pat.is_date64],
    ]
    return any(_is_any(mine, group) and _is_any(other, group) for group in alike)


def _is_any(kind: pa.DataType, tests: Iterable[object]) -> bool:
    return any(test(kind) for test in tests if callable(test))
