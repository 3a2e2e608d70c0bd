"""What batches are made of: Arrow tables, dicts of arrays, dicts of tensors.

Rows are converted a table at a time, which is fast, and cut into batches afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from minitrain.data import values
from minitrain.data.plans.mapped import taken
from minitrain.exceptions import SchemaMismatchError

__all__ = ["ArrowFormat", "Format", "NumpyFormat", "TorchFormat", "batches_of", "format_for"]

C = TypeVar("C")


class Format(ABC, Generic[C]):
    """How rows are held between Arrow and the batches."""

    @abstractmethod
    def chunk(self, table: pa.Table) -> C:
        """Convert rows."""

    @abstractmethod
    def rows(self, chunk: C) -> int:
        """Return how many there are."""

    @abstractmethod
    def slice(self, chunk: C, start: int, stop: int) -> C:
        """Return some of them, if possible without a copy."""

    def split(self, chunk: C, start: int, stop: int, size: int) -> Iterator[C]:
        """Return parts of ``size`` rows each."""
        for first in range(start, stop, size):
            yield self.slice(chunk, first, first + size)

    @abstractmethod
    def concat(self, chunks: Sequence[C]) -> C:
        """Return those of several."""

    @abstractmethod
    def take(self, chunk: C, indices: np.ndarray) -> C:
        """Return some of them in another order."""

    def finish(self, chunk: C) -> Any:
        """Return the batch that the user gets."""
        return chunk


class ArrowFormat(Format[pa.Table]):
    """Arrow tables; also what pandas' frames are made from.

    Args:
        batch_format: What the user gets.
    """

    def __init__(self, batch_format: str | None = "pyarrow") -> None:
        self._batch_format = batch_format

    def chunk(self, table: pa.Table) -> pa.Table:
        """Return it as it is."""
        return table

    def rows(self, chunk: pa.Table) -> int:
        """Return how many rows there are."""
        return int(chunk.num_rows)

    def slice(self, chunk: pa.Table, start: int, stop: int) -> pa.Table:
        """Return some rows."""
        return chunk.slice(start, stop - start)

    def concat(self, chunks: Sequence[pa.Table]) -> pa.Table:
        """Return the rows of several."""
        return values.concat_tables(list(chunks))

    def take(self, chunk: pa.Table, indices: np.ndarray) -> pa.Table:
        """Return rows in another order."""
        return taken(chunk, indices)

    def finish(self, chunk: pa.Table) -> Any:
        """Return the batch that the user gets."""
        return values.batch_from_table(chunk, self._batch_format)


class _SameColumns:
    """Refuses rows whose columns are others than those before: a dict has no place for them."""

    def __init__(self) -> None:
        self._names: frozenset[str] | None = None

    def check(self, table: pa.Table) -> None:
        """Raise an error if a table has other columns than the first one."""
        names = frozenset(table.column_names)
        if self._names is None:
            self._names = names
        elif names != self._names:
            raise SchemaMismatchError(
                f"some rows have the columns {sorted(self._names)}, others {sorted(names)}: give "
                "all of them the same ones before union(), with select_columns() or add_column(), "
                "or in what a function returns"
            )


class NumpyFormat(Format[dict[str, np.ndarray]]):
    """A dict of arrays."""

    def __init__(self) -> None:
        self._columns = _SameColumns()

    def chunk(self, table: pa.Table) -> dict[str, np.ndarray]:
        """Convert rows."""
        self._columns.check(table)
        return values.numpy_from_table(table)

    def rows(self, chunk: dict[str, np.ndarray]) -> int:
        """Return how many rows there are."""
        return len(next(iter(chunk.values()), ()))

    def slice(self, chunk: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """Return some rows, as views."""
        return {name: array[start:stop] for name, array in chunk.items()}

    def concat(self, chunks: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the rows of several."""
        return values.concat_numpy(chunks)

    def take(self, chunk: dict[str, np.ndarray], indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return rows in another order."""
        return {name: array[indices] for name, array in chunk.items()}


class TorchFormat(Format[dict[str, Any]]):
    """A dict of tensors; of lists of them for a column whose rows have different shapes.

    Args:
        dtypes: Of all columns, or by column.
        needed: Returns of the columns there are those to make tensors of; None: all.
    """

    def __init__(
        self, dtypes: Any, needed: Callable[[Sequence[str]], Sequence[str]] | None = None
    ) -> None:
        import torch

        for dtype in dtypes.values() if isinstance(dtypes, Mapping) else (dtypes,):
            if not isinstance(dtype, torch.dtype | None):
                raise TypeError(
                    f"dtypes={dtypes!r}: must be a torch.dtype, such as torch.float32, or a dict "
                    "of columns and their dtypes"
                )
        self._torch = torch
        self._columns = _SameColumns()
        self._dtypes = dtypes
        self._needed = needed

    def chunk(self, table: pa.Table) -> dict[str, Any]:
        """Convert rows."""
        if self._needed is not None:
            table = table.select(list(self._needed(table.column_names)))
        self._columns.check(table)
        return values.torch_from_table(table, self._dtypes)

    def rows(self, chunk: dict[str, Any]) -> int:
        """Return how many rows there are."""
        return len(next(iter(chunk.values()), ()))

    def slice(self, chunk: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
        """Return some rows, as views."""
        return {name: column[start:stop] for name, column in chunk.items()}

    def split(
        self, chunk: dict[str, Any], start: int, stop: int, size: int
    ) -> Iterator[dict[str, Any]]:
        """Return parts of ``size`` rows each: torch cuts a tensor faster than Python can."""
        if start == stop or any(isinstance(column, list) for column in chunk.values()):
            yield from super().split(chunk, start, stop, size)
            return
        parts = [column[start:stop].split(size) for column in chunk.values()]
        for columns in zip(*parts, strict=True):
            yield dict(zip(chunk, columns, strict=True))

    def concat(self, chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the rows of several."""
        return {name: self._joined([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def take(self, chunk: dict[str, Any], indices: np.ndarray) -> dict[str, Any]:
        """Return rows in another order."""
        return {
            name: [column[i] for i in indices]
            if isinstance(column, list)
            else self._taken(column, indices)
            for name, column in chunk.items()
        }

    def finish(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """Return the batch: whether rows are a list must not depend on what was read with them."""
        return {
            name: self._stacked(column) if isinstance(column, list) else column
            for name, column in chunk.items()
        }

    def _stacked(self, rows: list[Any]) -> Any:
        alike = len({(row.shape, row.dtype) for row in rows}) == 1
        return self._torch.stack(rows) if alike else rows

    def _joined(self, columns: list[Any]) -> Any:
        if all(isinstance(column, self._torch.Tensor) for column in columns):
            shapes = {column.shape[1:] for column in columns}
            if len(shapes) == 1:
                return self._one(columns)
        return [row for column in columns for row in column]

    def _one(self, columns: list[Any]) -> Any:
        arrays = _arrays(columns)
        if arrays is None or len({array.dtype for array in arrays}) > 1:
            return self._torch.cat(columns)
        return self._torch.from_numpy(np.concatenate(arrays))

    def _taken(self, column: Any, indices: np.ndarray) -> Any:
        arrays = _arrays([column])
        if arrays is None:
            return column.index_select(0, self._torch.from_numpy(indices))
        return self._torch.from_numpy(arrays[0].take(indices, axis=0))


def _arrays(tensors: list[Any]) -> list[np.ndarray] | None:
    """Return tensors as arrays, which numpy copies in this thread; None: it has no such numbers.

    Torch has several threads copy what is large, which then spin where the training computes.
    """
    try:
        return [tensor.numpy() for tensor in tensors]
    except TypeError:  # bfloat16 and what is smaller
        return None


def format_for(batch_format: str | None) -> Format[Any]:
    """Return how rows are held for batches of a format."""
    values.check_format(batch_format)
    if batch_format in {"default", "numpy"}:
        return NumpyFormat()
    return ArrowFormat("pyarrow" if batch_format is None else batch_format)


def batches_of(
    chunks: Iterable[C], form: Format[C], size: int | None, *, drop_last: bool
) -> Iterator[C]:
    """Cut chunks into batches of ``size`` rows; the last may be shorter, or is left out."""
    held: list[C] = []
    rows = 0
    for chunk in chunks:
        if size is None:
            yield chunk
            continue
        start, end = 0, form.rows(chunk)
        if held and rows + end >= size:
            start = size - rows
            yield form.concat([*held, form.slice(chunk, 0, start)])
            held, rows = [], 0
        if not held:
            whole = start + (end - start) // size * size
            yield from form.split(chunk, start, whole, size)
            start = whole
        if start < end:
            held.append(form.slice(chunk, start, end))
            rows += end - start
    if held and not drop_last:
        yield form.concat(held)
