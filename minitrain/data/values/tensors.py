"""Tensors of torch from numpy arrays and from tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from minitrain.data.values.from_arrow import even_lists, numpy_from_column
from minitrain.exceptions import ColumnError

if TYPE_CHECKING:
    import torch

    Dtypes = torch.dtype | Mapping[str, torch.dtype] | None
    Tensors = dict[str, torch.Tensor | list[torch.Tensor]]

__all__ = ["torch_from_numpy", "torch_from_table"]


def torch_from_table(table: pa.Table, dtypes: Dtypes = None) -> Tensors:
    """Return a table's columns as tensors, each copied once into memory of its own.

    As :func:`torch_from_numpy` of :func:`numpy_from_table`.

    Raises:
        ColumnError: ``dtypes`` names a column that is not there.
        TypeError: A column holds something that no tensor can.
    """
    arrays = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        lists = even_lists(column)  # many times faster than an array for each
        arrays[name] = numpy_from_column(column) if lists is None else lists
    return torch_from_numpy(arrays, dtypes)


def torch_from_numpy(arrays: Mapping[str, np.ndarray], dtypes: Dtypes = None) -> Tensors:
    """Return arrays as tensors that share their memory.

    An array of arrays becomes one tensor if these have one shape, else a list of tensors.

    Args:
        arrays: The columns.
        dtypes: What to convert all to, or some by name; the others keep theirs.

    Raises:
        ColumnError: ``dtypes`` names a column that is not there.
        TypeError: A column holds something that no tensor can: texts, times, nulls, objects.
    """
    of_column = dtypes if isinstance(dtypes, Mapping) else dict.fromkeys(arrays, dtypes)
    for name in of_column:
        if name not in arrays:
            raise ColumnError(name, arrays, "dtypes")
    tensors, refused = {}, {}
    for name, array in arrays.items():
        try:
            tensors[name] = _tensors(array, of_column.get(name))
        except TypeError as error:
            refused[name] = str(error)
    if refused:
        reasons = ", ".join(f"{name!r} ({why})" for name, why in refused.items())
        raise TypeError(
            f"no tensor can hold the column{'s' * (len(refused) > 1)} {reasons}: leave out what is "
            f"not needed, drop_columns({list(refused)}), or make tensors of it yourself, "
            "iter_torch_batches(collate_fn=...)"
        )
    return tensors


def _tensors(array: np.ndarray, dtype: torch.dtype | None) -> torch.Tensor | list[torch.Tensor]:
    if array.dtype != object:
        return _tensor(array, dtype)
    rows = [_unwrapped(row) for row in array]
    if rows and len({row.shape for row in rows}) == 1:
        return _tensor(np.stack(rows), dtype)
    return [_tensor(row, dtype) for row in rows]


def _unwrapped(row: Any) -> np.ndarray:
    """Return a row of an array of objects as an array of numbers; lists of lists, too."""
    if not isinstance(row, np.ndarray):
        raise TypeError("nulls" if row is None else f"values of type {type(row).__name__}")
    if row.dtype != object:
        return row
    inner = [_unwrapped(item) for item in row]
    if len({item.shape for item in inner}) > 1:
        raise TypeError("lists of lists of different lengths")
    return np.stack(inner) if inner else np.empty(0)


def _has_nan(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _tensor(array: np.ndarray, dtype: torch.dtype | None) -> torch.Tensor:
    import torch

    if (
        dtype is not None
        and array.dtype.kind == "f"
        and not _has_nan(dtype)
        and np.isnan(array).any()
    ):
        raise TypeError(f"nulls or NaN, which {dtype} has not")
    if array.dtype.kind not in "biufc":
        kinds = {"M": "times", "m": "durations", "U": "texts", "S": "bytes"}
        raise TypeError(kinds.get(array.dtype.kind, f"values of dtype {array.dtype}"))
    if not (array.flags.carray and array.dtype.isnative):  # a user's own array
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    tensor = torch.from_numpy(array)
    return tensor if dtype is None else tensor.to(dtype)
