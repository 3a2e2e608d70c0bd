"""What can be known of a filter expression without reading rows."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from minitrain.exceptions import ColumnError, DataError

__all__ = ["columns_of"]


def columns_of(predicate: pc.Expression, schema: pa.Schema, where: str) -> tuple[str, ...]:
    """Return the columns that a filter looks at.

    pyarrow does not tell, so the ones without which it cannot be evaluated are found out.

    Raises:
        ColumnError: It looks at one that is not there.
        DataError: It is no filter for such columns.
    """
    problem = _problem(predicate, schema)
    if problem is not None:
        missing = re.search(r"FieldRef\.Name\((.*?)\) in", problem)
        if missing and missing[1] not in schema.names:
            raise ColumnError(missing[1], schema.names, f"{where}: the filter")
        raise DataError(f"{where}: the filter {predicate} cannot be applied: {problem}")
    text = str(predicate)
    named = [one for one in schema if one.name in text]
    return tuple(
        one.name
        for one in named
        if _problem(predicate, pa.schema([other for other in named if other is not one]))
    )


def _problem(predicate: pc.Expression, schema: pa.Schema) -> str | None:
    try:
        schema.empty_table().filter(predicate)
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None
