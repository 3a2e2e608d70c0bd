"""Sorts all rows of a dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.plans.mapped import taken
from minitrain.data.plans.steps import check_columns
from minitrain.exceptions import DataError

__all__ = ["Sorted", "comparable"]

_ROWS_AT_A_TIME = 1 << 16


def comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the same values as Arrow can sort and group them, one way for each value."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_float16(column.type):  # Arrow computes nothing with these
        column = column.cast(pa.float32())
    if pa.types.is_floating(column.type):
        column = pc.add(column, pa.scalar(0.0, column.type))  # -0.0 and 0.0 are one
        # So are NaN and -NaN, which processors give for 0 / 0.
        return pc.if_else(pc.is_nan(column), pa.scalar(math.nan, column.type), column)
    return column


@dataclass(frozen=True)
class Sorted:
    """Sorts a table.

    Only the columns to sort by and the order, 8 bytes per row, have to fit into memory.

    Attributes:
        keys: Columns, and whether each is sorted in descending order.
    """

    keys: tuple[tuple[str, bool], ...]

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield the rows in order."""
        if not table.num_rows:
            return
        columns = [name for name, _ in self.keys]
        check_columns(columns, table.column_names, self.describe())
        names = [f"key {number}" for number in range(len(columns))]  # Arrow reads some as paths
        keys = pa.table([comparable(table.column(name)) for name in columns], names)
        directions = [
            (name, "descending" if down else "ascending")
            for name, (_, down) in zip(names, self.keys, strict=True)
        ]
        try:
            indices = pc.sort_indices(keys, sort_keys=directions).to_numpy()
        except (pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{self.describe()}: {error}") from error
        for start in range(0, len(indices), _ROWS_AT_A_TIME):
            part = indices[start : start + _ROWS_AT_A_TIME].astype("int64")
            yield taken(table, part)

    def describe(self) -> str:
        """Return one line."""
        texts = [f"{name} descending" if down else name for name, down in self.keys]
        return f"sort({', '.join(texts)})"
