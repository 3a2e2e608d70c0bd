"""Columns of Arrow from numpy arrays and lists of Python values."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from minitrain.data.values.types import (
    pickled_array,
    ragged_tensor_array,
    tensor_array,
)

__all__ = ["array_from_list", "array_from_numpy", "is_tensor", "numpy_from_tensor"]

_UNITS = {"D", "s", "ms", "us", "ns"}
"""The units of time that Arrow has, too: a longer one becomes days or seconds."""

_MOST_BYTES = 8
"""Arrow has no longer numbers."""
_NOT_ARROWS = (pa.ArrowException, TypeError, ValueError, OverflowError)
"""What pa.array raises for values that it finds no type for."""


def array_from_numpy(array: np.ndarray) -> pa.Array | pa.ChunkedArray:
    """Return a column with the rows of an array; more than one dimension: a column of tensors.

    An array that Arrow can hold as it lies in memory is not copied: do not write to it any more.
    NaN stays NaN, NaT becomes null.

    Raises:
        TypeError: It holds objects for which Arrow has no type and that cannot be pickled.
        ValueError: It has no dimension.
    """
    if array.ndim == 0:
        raise ValueError("a single value, not an array of one value a row")
    if array.ndim > 1:
        return _tensors_of_one_shape(array)
    if array.dtype.fields:
        fields = {name: array_from_numpy(array[name]) for name in array.dtype.names or ()}
        return pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    if array.dtype == object:
        return array_from_list(array.tolist())
    if array.dtype.kind in "Mm":
        array = _with_a_unit_of_arrow(array)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        return _numbers(array) if _are_numbers(array) else pa.array(array)
    except pa.ArrowNotImplementedError:  # complex numbers, 80-bit floats
        return pickled_array(array)


def _are_numbers(array: np.ndarray) -> bool:
    """Return whether Arrow can hold an array as it lies in memory."""
    plain = type(array) is np.ndarray and array.flags.carray and bool(array.size)
    return plain and array.dtype.kind in "iuf" and array.itemsize <= _MOST_BYTES


def _numbers(array: np.ndarray) -> pa.Array:
    """Return numbers as a column; ``pa.array()`` would import pandas, which takes long."""
    buffers = [None, pa.py_buffer(array)]
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), len(array), buffers)


def _with_a_unit_of_arrow(array: np.ndarray) -> np.ndarray:
    unit, _ = np.datetime_data(array.dtype)
    kind = array.dtype.kind
    if unit in _UNITS and not (kind == "m" and unit == "D"):
        return array.astype(f"{kind}8[{unit}]", copy=False)  # in native order, without a multiple
    if unit in {"Y", "M", "W"} and kind == "M":
        return array.astype("M8[D]")
    return array.astype(f"{kind}8[s]") if unit in {"W", "D", "h", "m"} else array


def _tensors_of_one_shape(array: np.ndarray) -> pa.Array:
    if isinstance(array, np.matrix):  # scipy's todense() gives one, and it stays two-dimensional
        array = np.asarray(array)
    values = array_from_numpy(array.reshape(-1))
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values.type, pa.BaseExtensionType):  # objects: each row is one
        return pickled_array(array)
    return tensor_array(values, array.shape)


def array_from_list(values: Sequence[Any]) -> pa.Array | pa.ChunkedArray:
    """Return a column with these values; None: null.

    Arrays become tensors: of one shape, or ragged. Numbers, strings, times, lists and dicts become
    what Arrow makes of them. Anything else, and what does not fit together, is pickled.

    Raises:
        TypeError: One of them can neither be held by Arrow nor be pickled.
    """
    kinds = {type(value) for value in values} - {type(None)}
    if any(map(is_tensor, kinds)):
        values = [numpy_from_tensor(value) if is_tensor(type(value)) else value for value in values]
        # A tensor without dimensions is a number.
        values = [value[()] if _is_number(value) else value for value in values]
        kinds = {type(value) for value in values} - {type(None)}
    if kinds == {np.ndarray}:
        return _tensors(values)
    if _are_scalars(values):
        return array_from_numpy(np.array(values))
    return _inferred(values, kinds)


def _is_number(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 0


def _are_scalars(values: Sequence[Any]) -> bool:
    """Return whether numpy has a dtype for these, its own scalars, without changing any."""
    kinds = {value.dtype.kind if isinstance(value, np.generic) else "" for value in values}
    return len(kinds) == 1 and kinds <= set("biufcMmUV")


def _inferred(values: Sequence[Any], kinds: set[type]) -> pa.Array:
    families = {_family(kind) for kind in kinds} - _MISSING
    if len(families) > 1 and float in kinds:  # pandas has texts with NaN for the missing ones
        values = [None if _is_nan(value) else value for value in values]
        families = {_family(type(value)) for value in values if value is not None} - _MISSING
    if len(families) > 1:
        return pickled_array(values)
    attempts: list[dict[str, Any]] = [{}, {"from_pandas": True}]
    if kinds == {int}:
        attempts.append({"type": pa.uint64()})
    for arguments in attempts:
        try:
            array = _with_nanoseconds(pa.array(values, **arguments), values)
            if pa.types.is_nested(array.type):  # in lists it takes any bytes that follow a text
                array.validate(full=True)
        except _NOT_ARROWS:
            continue
        return array
    return pickled_array(values)


def _with_nanoseconds(array: pa.Array, values: Sequence[Any]) -> pa.Array:
    """Return pandas' times of that unit as such; Arrow takes all times for those of Python."""
    if pa.types.is_timestamp(array.type):
        kind = pa.timestamp("ns", array.type.tz)
    elif pa.types.is_duration(array.type):
        kind = pa.duration("ns")
    else:
        return array
    if all(getattr(value, "unit", None) != "ns" for value in values):
        return array
    try:
        return pa.array(values, kind, from_pandas=True)
    except _NOT_ARROWS:  # one of them is too far from 1970
        return array


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _family(kind: type) -> str:
    """Return which kinds of values may share a column.

    pa.array is not asked: it takes a 1 for a microsecond of 1970 if a time precedes it, and reads
    where it must not if a numpy.float32 follows a numpy.datetime64.
    """
    for family in _FAMILIES:
        if issubclass(kind, family):
            return family[0].__name__
    return kind.__name__


_FAMILIES: tuple[tuple[type, ...], ...] = (
    (bool, np.bool_),
    (int, float, decimal.Decimal, np.integer, np.floating),
    (str,),
    (bytes, bytearray),
    (list, tuple, set, frozenset, np.ndarray),
    (dict,),
    (dt.datetime,),  # before dt.date, which it derives from
    (dt.date,),
)
_MISSING = {"NAType", "NaTType"}
"""What pandas has in the place of missing values."""


def _tensors(tensors: Sequence[np.ndarray | None]) -> pa.Array:
    present = [tensor for tensor in tensors if tensor is not None]
    if all(tensor.dtype.kind in "OSTU" for tensor in present):
        return _lists(tensors)
    if not all(tensor.dtype.kind in "biufMm" for tensor in present):
        return pickled_array(tensors)
    try:
        dtype = np.result_type(*{tensor.dtype for tensor in present})
    except TypeError:  # numbers and times
        return pickled_array(tensors)
    flat = [tensor.astype(dtype, copy=False).reshape(-1) for tensor in present]
    values = array_from_numpy(np.concatenate(flat))
    if isinstance(values.type, pa.BaseExtensionType):
        return pickled_array(tensors)
    shapes = {tensor.shape for tensor in present}
    if len(shapes) > 1:
        return ragged_tensor_array(tensors, values)
    return _tensors_with_nulls(tensors, flat, shapes.pop())


def _lists(arrays: Sequence[np.ndarray | None]) -> pa.Array:
    lists = [None if array is None else array.tolist() for array in arrays]
    try:
        return pa.array(lists)
    except _NOT_ARROWS:
        return pickled_array(arrays)


def _tensors_with_nulls(
    tensors: Sequence[np.ndarray | None], flat: list[np.ndarray], shape: tuple[int, ...]
) -> pa.Array:
    valid = np.array([tensor is not None for tensor in tensors], dtype=bool)
    values = np.zeros((len(tensors), math.prod(shape)), dtype=flat[0].dtype)
    values[valid] = flat
    whole = (len(tensors), *shape)
    return tensor_array(array_from_numpy(values.reshape(-1)), whole, None if valid.all() else valid)


def is_tensor(kind: type) -> bool:
    """Return whether values of this class are tensors: numpy's, torch's or another framework's."""
    return hasattr(kind, "__dlpack__") and hasattr(kind, "__array__")


def numpy_from_tensor(tensor: Any) -> np.ndarray:
    """Return a tensor of any framework as an array; bfloat16, which numpy has not, as float32."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if type(tensor).__module__.partition(".")[0] == "torch":
        import torch

        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        return np.asarray(tensor.numpy(force=True))  # wherever it is, and also if it has a gradient
    return np.asarray(tensor)
