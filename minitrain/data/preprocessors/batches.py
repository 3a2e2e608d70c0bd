"""Batches of the three kinds, of which only the columns that matter become Arrow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from minitrain.data.values import numpy_from_table, pandas_from_table, table_from_batch

__all__ = ["replaced", "transformed"]


def replaced(
    table: pa.Table,
    columns: Mapping[str, pa.Array | pa.ChunkedArray],
    *,
    drop: Sequence[str] = (),
) -> pa.Table:
    """Return a table with other columns: those that are new stand last."""
    kept = {name: table.column(name) for name in table.column_names if name not in drop}
    return pa.table({**kept, **columns})


def transformed(
    batch: Any,
    transform: Callable[[pa.Table], pa.Table],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> Any:
    """Return what a function of tables makes of a batch, as a batch of the same kind.

    Args:
        batch: A dict of arrays, a pandas.DataFrame or a pyarrow.Table.
        transform: The function.
        inputs: The columns it reads.
        outputs: The columns it may write. One it reads and does not return is dropped.

    Raises:
        TypeError: The batch is something else.
    """
    if isinstance(batch, pa.Table):
        return transform(batch)
    if _is_dataframe(batch):
        return _transformed_dataframe(batch, transform, inputs, outputs)
    if isinstance(batch, Mapping):
        return _transformed_dict(batch, transform, inputs, outputs)
    raise TypeError(
        "a batch is a dict of arrays, a pandas.DataFrame or a pyarrow.Table, "
        f"not a {type(batch).__name__}"
    )


def _is_dataframe(batch: Any) -> bool:
    pandas = sys.modules.get("pandas")  # who has one has imported it
    return pandas is not None and isinstance(batch, pandas.DataFrame)


def _transformed_dict(
    batch: Mapping[str, Any],
    transform: Callable[[pa.Table], pa.Table],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> dict[str, Any]:
    names = _names_to_convert(list(batch), inputs)
    table = table_from_batch({name: batch[name] for name in names}, "the batch")
    result = transform(table)
    written = [name for name in result.column_names if name in outputs]
    kept = {
        name: column
        for name, column in batch.items()
        if name not in names or name in result.column_names
    }
    return {**kept, **numpy_from_table(result.select(written))}


def _transformed_dataframe(
    frame: Any,
    transform: Callable[[pa.Table], pa.Table],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> Any:
    names = _names_to_convert(list(frame.columns), inputs)
    result = transform(table_from_batch(frame[names], "the batch"))
    written = [name for name in result.column_names if name in outputs]
    kept = frame.drop(columns=[name for name in names if name not in result.column_names])
    computed = pandas_from_table(result.select(written))
    return kept.assign(**{name: computed[name].set_axis(frame.index) for name in written})


def _names_to_convert(names: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """Return the columns that are read; if none of them is there, all: for their number of rows."""
    return [name for name in names if name in inputs] or list(names)
