"""Which rows of a table belong together, because they are alike in some columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.plans.sorting import comparable
from minitrain.exceptions import DataError

__all__ = ["Groups", "grouped_by", "key_names", "one_chunk"]


@dataclass(frozen=True)
class Groups:
    """Which group each row of a table is in; the groups are in order of appearance.

    Attributes:
        keys: A row per group.
        ids: A number per row.
    """

    keys: pa.Table
    ids: np.ndarray

    @classmethod
    def of(cls, table: pa.Table, keys: Sequence[str]) -> Self:
        """Group the rows by columns; without columns there is one group.

        Raises:
            pa.ArrowNotImplementedError: Arrow cannot compare values of a column.
        """
        if not keys:
            return cls(table.select([]).slice(0, 1), np.zeros(table.num_rows, np.int64))
        # Arrow reads some names as paths, or gives them to columns of its own.
        names = key_names(len(keys))
        alike = pa.table([comparable(table.column(name)) for name in keys], names)
        numbered = alike.append_column("row", pa.array(np.arange(table.num_rows)))
        grouped = numbered.group_by(names, use_threads=False).aggregate([("row", "list")])
        rows = one_chunk(grouped.column("row_list"))
        numbers = np.empty(table.num_rows, np.int64)
        numbers[rows.flatten().to_numpy()] = pc.list_parent_indices(rows).to_numpy()
        # Arrow's own order is not always that of appearance, with several keys and nulls.
        appearance = np.argsort(pc.list_element(rows, 0).to_numpy())
        ids = np.argsort(appearance)[numbers]
        found = grouped.select(names).take(pa.array(appearance))
        return cls(found.rename_columns(list(keys)), ids)

    def __len__(self) -> int:
        return self.keys.num_rows if self.keys.num_columns else min(1, len(self.ids))

    def aggregate(self, values: Any, function: str, options: Any = None) -> pa.Array:
        """Return what a function of Arrow gives for the values of each group."""
        if not self.keys.num_columns and function != "list":  # one group, without hashing
            alone = pa.table({"value": values}).group_by([], use_threads=False)
            return one_chunk(alone.aggregate([("value", function, options)]).column(0))
        table = pa.table({"id": self.ids, "value": values})
        grouped = table.group_by("id", use_threads=False)
        made = grouped.aggregate([("value", function, options)]).sort_by("id")
        return one_chunk(made.column(f"value_{function}"))

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of a group's numbers for each group."""
        return np.bincount(self.ids, values, len(self))


def grouped_by(table: pa.Table, keys: Sequence[str], what: str) -> Groups:
    """Group the rows by columns that a user has named.

    Raises:
        DataError: Values of a column cannot be compared.
    """
    try:
        return Groups.of(table, keys)
    except pa.ArrowNotImplementedError as error:
        kinds = ", ".join(f"{name!r} is {table.schema.field(name).type}" for name in keys)
        raise DataError(f"{what}: rows cannot be grouped by that: {kinds}") from error


def key_names(keys: int) -> list[str]:
    """Return names for columns of keys that are no user's."""
    return [f"key {number}" for number in range(keys)]


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
