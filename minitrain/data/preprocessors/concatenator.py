"""Columns joined into one column of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minitrain.data.preprocessors.base import Preprocessor
from minitrain.data.preprocessors.columns import combined, floats, is_list, lists, missing, tensor
from minitrain.exceptions import TransformError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Concatenator"]


class Concatenator(Preprocessor):
    """Join columns of numbers into one column of vectors, in the order given; they are dropped.

    Args:
        columns: Columns of numbers; a column that is not there is an error.
        output_column_name: What to call the result.
        dtype: What the vectors consist of, such as ``numpy.float32``; None: what all columns can be
            converted to without loss.
        raise_if_missing: Has no effect: a missing column is an error in any case; ray.data has it.
        flatten: Columns may hold vectors or lists of equal lengths, whose elements are joined.

    Example:
        >>> import numpy as np
        >>> from minitrain.data.preprocessors import Concatenator
        >>> join = Concatenator(["a", "b"], "x", dtype=np.float32)
        >>> join.transform_batch({"a": np.array([1, 2]), "b": np.array([0.5, 0.25])})
        {'x': array([[1.  , 0.5 ],
               [2.  , 0.25]], dtype=float32)}
    """

    _is_fittable = False

    def __init__(
        self,
        columns: Sequence[str],
        output_column_name: str = "concat_out",
        dtype: Any = None,
        raise_if_missing: bool = False,
        flatten: bool = False,
    ) -> None:
        super().__init__(columns)
        self.output_columns = [output_column_name]
        self.output_column_name = output_column_name
        self.dtype = None if dtype is None else np.dtype(dtype)
        self.raise_if_missing = raise_if_missing
        self.flatten = flatten

    def _dropped(self) -> Sequence[str]:
        return self.columns

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        columns = [self._column(table, name) for name in self.columns]
        # From the types, not from what is there: each batch must give the same.
        dtype = self.dtype or np.result_type(*(_dtype_of(c.type) for c in columns))
        pairs = zip(self.columns, columns, strict=True)
        parts = [self._matrix(column, name, dtype) for name, column in pairs]
        joined = np.empty((table.num_rows, sum(part.shape[1] for part in parts)), dtype)
        np.concatenate(parts, axis=1, out=joined, casting="unsafe")
        return {self.output_column_name: tensor(joined)}

    def _matrix(self, column: pa.ChunkedArray, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        """Return a column as a matrix, mostly of one column."""
        if not is_list(column.type):
            return self._numbers(column, name, dtype).reshape(len(column), 1)
        if not self.flatten:
            raise TransformError(
                f"{self._what(name)} is of type {column.type}; with flatten=True its elements "
                "are joined"
            )
        rows = lists(column)
        lengths = pc.unique(pc.fill_null(pc.list_value_length(rows), -1)).to_pylist()
        if len(lengths) > 1 or lengths == [-1]:
            raise TransformError(
                f"{self._what(name)} has lists of different lengths, or none in some rows; all "
                "must have the same length"
            )
        flat = self._numbers(pa.chunked_array([pc.list_flatten(rows)]), name, dtype)
        return flat.reshape(len(rows), lengths[0] if lengths else _fixed_length(rows.type))

    def _numbers(self, column: pa.ChunkedArray, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        """Return a column as numbers, of its own type if nothing is missing."""
        if dtype.kind not in "fc" and missing(column):
            raise TransformError(
                f"{self._what(name)} has missing values, which {dtype} cannot hold; fill them in "
                "with a SimpleImputer, or give dtype=numpy.float32"
            )
        if column.null_count or not _is_native(column.type):
            return floats(column, self._what(name))
        values: np.ndarray = combined(column).to_numpy(zero_copy_only=False)
        return values


def _is_native(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _dtype_of(kind: pa.DataType) -> np.dtype[Any]:
    """Return what numpy has for a type of numbers, or of lists of them."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.value_type if hasattr(kind, "value_type") else pa.float64()
    if is_list(kind):
        kind = kind.value_type
    return np.dtype(kind.to_pandas_dtype()) if _is_native(kind) else np.dtype(np.float64)


def _fixed_length(kind: pa.DataType) -> int:
    """Return how long the lists of a table without rows are."""
    return kind.list_size if pa.types.is_fixed_size_list(kind) else 0
