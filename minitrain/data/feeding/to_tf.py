"""Batches of TensorFlow's tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minitrain.data import values
from minitrain.data.plans.steps import check_columns, names_of
from minitrain.exceptions import ConfigurationError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ToTensorFlow"]

Columns = str | Sequence[str]


class ToTensorFlow(ABC):
    """Makes TensorFlow's tensors and datasets of what can be iterated over in batches."""

    @abstractmethod
    def schema(self) -> pa.Schema | None:
        """Return the columns and their types; None if there are no rows."""

    iter_batches: Callable[..., Any]

    def iter_tf_batches(
        self,
        *,
        prefetch_batches: int = 1,
        batch_size: int | None = 256,
        dtypes: Any = None,
        drop_last: bool = False,
        local_shuffle_buffer_size: int | None = None,
        local_shuffle_seed: int | None = None,
    ) -> Any:
        """Iterate over batches of TensorFlow's tensors: a dict with one per column.

        Columns whose rows have different shapes become ragged tensors. Arguments are those of
        :meth:`iter_batches`, but for one.

        Args:
            prefetch_batches: So many batches are made ready in a thread while one is used.
            batch_size: Rows per batch.
            dtypes: A ``tf.DType``, or one by column.
            drop_last: Leave a shorter last batch out.
            local_shuffle_buffer_size: Shuffle the rows of so many at a time.
            local_shuffle_seed: Of that shuffle.
        """
        import tensorflow  # noqa: F401 - says at once that it is not there

        batches = self.iter_batches(
            batch_format="numpy",
            prefetch_batches=prefetch_batches,
            batch_size=batch_size,
            drop_last=drop_last,
            local_shuffle_buffer_size=local_shuffle_buffer_size,
            local_shuffle_seed=local_shuffle_seed,
        )
        return _Converted(batches, lambda batch: _tensors(batch, dtypes))

    def to_tf(
        self,
        feature_columns: Columns,
        label_columns: Columns,
        *,
        additional_columns: Columns | None = None,
        prefetch_batches: int = 1,
        batch_size: int = 1,
        drop_last: bool = False,
        local_shuffle_buffer_size: int | None = None,
        local_shuffle_seed: int | None = None,
        feature_type_spec: Any = None,
        label_type_spec: Any = None,
        additional_type_spec: Any = None,
    ) -> Any:
        """Return a ``tf.data.Dataset`` of batches, such as ``model.fit`` takes.

        Args:
            feature_columns: A column, for a tensor; several, for a dict of them.
            label_columns: Likewise.
            additional_columns: Likewise, in a third place, such as weights; None: there is none.
            prefetch_batches: So many batches are made ready in a thread while one is used.
            batch_size: Rows per batch.
            drop_last: Leave a shorter last batch out.
            local_shuffle_buffer_size: Shuffle the rows of so many at a time.
            local_shuffle_seed: Of that shuffle.
            feature_type_spec: A ``tf.TypeSpec``, or a dict of them; None: found in the schema.
            label_type_spec: Likewise.
            additional_type_spec: Likewise.

        Raises:
            ColumnError: There is no such column.
            ConfigurationError: The schema does not say what a column's tensors are like, or there
                are no rows.
        """
        import tensorflow as tf

        groups = [(feature_columns, feature_type_spec), (label_columns, label_type_spec)]
        if additional_columns is not None:
            groups.append((additional_columns, additional_type_spec))
        schema = self.schema()
        if schema is None:
            raise ConfigurationError("to_tf: the dataset has no rows, and so no columns")
        for columns, _ in groups:
            check_columns(names_of("to_tf", columns), schema.names, "to_tf")
        signature = tuple(
            _specs(schema, columns) if spec is None else spec for columns, spec in groups
        )
        batches = self.iter_batches(
            batch_format="numpy",
            prefetch_batches=prefetch_batches,
            batch_size=batch_size,
            drop_last=drop_last,
            local_shuffle_buffer_size=local_shuffle_buffer_size,
            local_shuffle_seed=local_shuffle_seed,
        )

        def made() -> Iterator[Any]:
            for batch in batches:
                yield tuple(
                    _chosen(batch, columns, spec)
                    for (columns, _), spec in zip(groups, signature, strict=True)
                )

        return tf.data.Dataset.from_generator(made, output_signature=signature)


class _Converted:
    """An iterable over another one's items, each converted."""

    def __init__(self, items: Any, convert: Callable[[Any], Any]) -> None:
        self._items = items
        self._convert = convert

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield self._convert(item)


def _tensors(batch: Mapping[str, np.ndarray], dtypes: Any) -> dict[str, Any]:
    by_column = dtypes if isinstance(dtypes, Mapping) else dict.fromkeys(batch, dtypes)
    check_columns(by_column, list(batch), "dtypes")
    return {name: _tensor(name, array, by_column.get(name)) for name, array in batch.items()}


def _tensor(name: str, array: np.ndarray, dtype: Any) -> Any:
    import tensorflow as tf

    try:
        if array.dtype != object:
            return tf.cast(array, dtype) if dtype not in {None, tf.string} else tf.constant(array)
        if len(array) and isinstance(array[0], np.ndarray):
            ragged = tf.ragged.stack([tf.constant(row, dtype) for row in array])
            return ragged.with_row_splits_dtype(tf.int64)  # which is what specs say by default
        return tf.constant(array.tolist(), dtype)
    except (TypeError, ValueError) as error:
        raise DataError(f"column {name!r} cannot become a tensor of TensorFlow: {error}") from error


def _chosen(batch: Mapping[str, np.ndarray], columns: Columns, spec: Any) -> Any:
    if isinstance(columns, str):
        return _tensor(columns, batch[columns], spec.dtype)
    return {
        name: _tensor(name, batch[name], spec[name].dtype if isinstance(spec, Mapping) else None)
        for name in columns
    }


def _specs(schema: pa.Schema, columns: Columns) -> Any:
    specs = {name: _spec(schema.field(name)) for name in names_of("to_tf", columns)}
    return specs[columns] if isinstance(columns, str) else specs


def _spec(column: pa.Field) -> Any:
    """Return what a column's tensors are like: the first axis is the batch's."""
    import pyarrow.types as pat
    import tensorflow as tf

    kind = column.type
    if pat.is_string(kind) or pat.is_large_string(kind) or pat.is_binary(kind):
        return tf.TensorSpec(shape=(None,), dtype=tf.string)
    if (pat.is_list(kind) or pat.is_large_list(kind)) and pat.is_primitive(kind.value_type):
        dtype = tf.as_dtype(kind.value_type.to_pandas_dtype())
        return tf.RaggedTensorSpec(shape=(None, None), dtype=dtype, ragged_rank=1)
    array = values.numpy_from_column(_of_no_rows(column))
    if array.dtype == object or array.dtype.kind in "Mm":
        raise ConfigurationError(
            f"to_tf: column {column.name!r} is {kind}, which does not say what its tensors are "
            "like; give feature_type_spec, label_type_spec or additional_type_spec"
        )
    return tf.TensorSpec(shape=(None, *array.shape[1:]), dtype=tf.as_dtype(array.dtype))


def _of_no_rows(column: pa.Field) -> pa.ChunkedArray:
    import pyarrow as pa

    return pa.schema([column]).empty_table().column(0)
