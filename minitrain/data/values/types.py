"""Arrow columns of tensors, and of objects that Arrow has no type for.

Tensors of one shape are Arrow's own ``arrow.fixed_shape_tensor``. Two types are added:

* ``minitrain.ragged_tensor``: tensors of several shapes, their values one after the other.
* ``minitrain.object``: anything else, pickled. Reading such a value runs what its pickle says: open
  no files of strangers that have such columns.

Importing this module registers both. A process that has not imported it reads what they are stored
as instead, so one that maps or receives Arrow IPC imports it first; unpickling does so itself.
"""

from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa

__all__ = [
    "ObjectType",
    "RaggedTensorType",
    "object_array",
    "objects_from",
    "pickled_array",
    "ragged_tensor_array",
    "ragged_tensors_from",
    "tensor_array",
]


class _RaggedTensorScalar(pa.ExtensionScalar):  # type: ignore[misc]
    def as_py(self, **_: Any) -> np.ndarray | None:
        if self.value is None:
            return None
        values = np.array(self.value["data"].values.to_numpy(zero_copy_only=False))
        return values.reshape(self.value["shape"].as_py())


class RaggedTensorType(pa.ExtensionType):  # type: ignore[misc]
    """Tensors of one dtype, each with a shape of its own.

    Args:
        value_type: Arrow's type of their values.
    """

    def __init__(self, value_type: pa.DataType) -> None:
        self.value_type = value_type
        # Offsets of 64 bits: the pixels of a few thousand images are more than 32 count.
        fields = [("data", pa.large_list(value_type)), ("shape", pa.list_(pa.int32()))]
        super().__init__(pa.struct(fields), "minitrain.ragged_tensor")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    def __hash__(self) -> int:
        return hash(self.value_type)

    @classmethod
    def __arrow_ext_deserialize__(
        cls, storage_type: pa.DataType, serialized: bytes
    ) -> RaggedTensorType:
        del serialized
        return cls(storage_type.field("data").type.value_type)

    def __arrow_ext_scalar_class__(self) -> type:
        return _RaggedTensorScalar


class _ObjectScalar(pa.ExtensionScalar):  # type: ignore[misc]
    def as_py(self, **_: Any) -> Any:
        return None if self.value is None else pickle.loads(self.value.as_py())


class ObjectType(pa.ExtensionType):  # type: ignore[misc]
    """Python objects, pickled."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "minitrain.object")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    def __hash__(self) -> int:
        return hash(ObjectType)

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> ObjectType:
        del storage_type, serialized
        return cls()

    def __arrow_ext_scalar_class__(self) -> type:
        return _ObjectScalar


for _type in (RaggedTensorType(pa.float32()), ObjectType()):
    with contextlib.suppress(pa.ArrowKeyError):  # it is there: the module was loaded anew
        pa.register_extension_type(_type)


def object_array(values: Sequence[Any]) -> np.ndarray:
    """Return a numpy array of one dimension with these objects; arrays of one shape, too."""
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def tensor_array(
    values: pa.Array, shape: Sequence[int], valid: np.ndarray | None = None
) -> pa.Array:
    """Return a column of ``shape[0]`` tensors of the shape ``shape[1:]``.

    Args:
        values: Their values, row by row; for a null anything.
        shape: The shape of the whole.
        valid: Which are not null, among tensors of numbers and times; None: all.
    """
    if not pa.types.is_primitive(values.type):  # a tensor of strings is lists of lists of them
        array = values
        for axis in range(len(shape) - 1, 0, -1):
            array = _fixed_size_list(array, shape[axis], math.prod(shape[:axis]), None)
        return array
    rows, *rest = shape
    storage = _fixed_size_list(values, math.prod(rest), rows, valid)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(values.type, rest), storage)


def _fixed_size_list(
    values: pa.Array, size: int, rows: int, valid: np.ndarray | None
) -> pa.FixedSizeListArray:
    # FixedSizeListArray.from_arrays would not know how many lists of no values there are.
    bitmap = None if valid is None else pa.array(valid).buffers()[1]
    type_ = pa.list_(values.type, size)
    return pa.Array.from_buffers(type_, rows, [bitmap], children=[values])


def ragged_tensor_array(tensors: Sequence[np.ndarray | None], values: pa.Array) -> pa.Array:
    """Return a column of tensors of several shapes.

    Args:
        tensors: The tensors; None: null.
        values: The values of all of them, one after the other.
    """
    shapes = [() if tensor is None else tensor.shape for tensor in tensors]
    sizes = [0 if tensor is None else tensor.size for tensor in tensors]
    storage = pa.StructArray.from_arrays(
        [
            pa.LargeListArray.from_arrays(pa.array(_offsets(sizes)), values),
            pa.array(shapes, pa.list_(pa.int32())),
        ],
        names=["data", "shape"],
        mask=pa.array([tensor is None for tensor in tensors], pa.bool_()),
    )
    return pa.ExtensionArray.from_storage(RaggedTensorType(values.type), storage)


def _offsets(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)


def ragged_tensors_from(array: pa.Array, values: np.ndarray) -> np.ndarray:
    """Return the tensors of a column as an object array of them.

    Args:
        array: The storage of the column.
        values: All its values: those of ``array.field("data").flatten()``.
    """
    shapes = array.field("shape").to_pylist()
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    ends = np.cumsum(
        [math.prod(shape or ()) if ok else 0 for shape, ok in zip(shapes, valid, strict=True)]
    )
    tensors = [
        values[end - math.prod(shape) : end].reshape(shape) if ok else None
        for shape, end, ok in zip(shapes, ends, valid, strict=True)
    ]
    return object_array(tensors)


def pickled_array(values: Iterable[Any]) -> pa.Array:
    """Return a column of objects; None: null.

    Raises:
        TypeError: One of them cannot be pickled.
    """
    storage = pa.array(
        [None if value is None else _pickled(value) for value in values], pa.binary()
    )
    return pa.ExtensionArray.from_storage(ObjectType(), storage)


def _pickled(value: Any) -> bytes:
    try:
        # Classes of a script travel by value: another process may have to read this.
        return bytes(cloudpickle.dumps(value))
    except Exception as error:  # whatever the object's own __reduce__ raises
        name = type(value).__name__
        raise TypeError(
            f"Arrow has no type for a {name}, and it cannot be pickled: {error}"
        ) from error


def objects_from(array: pa.Array) -> np.ndarray:
    """Return the objects of a column whose storage this is."""
    pickles = array.to_pylist()
    return object_array([None if data is None else pickle.loads(data) for data in pickles])
