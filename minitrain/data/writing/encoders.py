"""The formats that datasets are written in: tables in, the bytes of a file out."""

from __future__ import annotations

import datetime
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.types as pat

from minitrain.data import values
from minitrain.data.plans.steps import check_columns
from minitrain.exceptions import DataError

__all__ = ["Csv", "Encoder", "JsonLines", "Numpy", "Parquet", "Writer"]


class Writer(Protocol):
    """Writes one file."""

    def write_table(self, table: pa.Table) -> None:
        """Write more rows."""

    def close(self) -> None:
        """Write what comes at the end."""


class Encoder(ABC):
    """A format of files.

    Attributes:
        extension: Of their names.
        keeps_schema: Whether a file without rows says which columns there are.
    """

    extension: str
    keeps_schema: bool = False

    def check(self, schema: pa.Schema) -> None:  # noqa: B027 - any will do
        """Refuse columns that cannot be written.

        Raises:
            DataError: There is one; the message names it.
        """

    @abstractmethod
    def open(self, stream: Any, schema: pa.Schema) -> Writer:
        """Begin a file."""


@dataclass(frozen=True)
class Parquet(Encoder):
    """Parquet; tensors and objects are read back as what they were.

    Attributes:
        options: Of ``pyarrow.parquet.ParquetWriter``.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    extension = "parquet"
    keeps_schema = True

    def open(self, stream: Any, schema: pa.Schema) -> Writer:
        """Begin a file."""
        import pyarrow.parquet as pq

        writer: Writer = pq.ParquetWriter(stream, schema, **self.options)
        return writer


@dataclass(frozen=True)
class Csv(Encoder):
    """Comma-separated values, with a line of names.

    Attributes:
        options: Of ``pyarrow.csv.CSVWriter``.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    extension = "csv"
    keeps_schema = True

    def check(self, schema: pa.Schema) -> None:
        """Refuse columns whose values are no text, number or time."""
        _refuse(schema, "CSV", lambda kind: pat.is_nested(kind) or _is_bytes(kind))

    def open(self, stream: Any, schema: pa.Schema) -> Writer:
        """Begin a file."""
        return _CsvWriter(stream, schema, self.options)


class _CsvWriter:
    def __init__(self, stream: Any, schema: pa.Schema, options: Mapping[str, Any]) -> None:
        import pyarrow.csv

        plain = _without_dictionaries(schema.empty_table())
        self._writer = pyarrow.csv.CSVWriter(stream, plain.schema, **options)

    def write_table(self, table: pa.Table) -> None:
        if table.num_columns == 1 and table.column(0).null_count:
            raise DataError(
                f"write_csv: column {table.column_names[0]!r} has nulls; alone in a file these are "
                "empty lines, which readers leave out; write Parquet or JSON"
            )
        self._writer.write_table(_without_dictionaries(table))

    def close(self) -> None:
        self._writer.close()


@dataclass(frozen=True)
class JsonLines(Encoder):
    """A JSON object per line; NaN and infinity are null, times are ISO 8601, decimals are text."""

    extension = "json"

    def check(self, schema: pa.Schema) -> None:
        """Refuse columns of bytes."""
        _refuse(schema, "JSON", _is_bytes)

    def open(self, stream: Any, schema: pa.Schema) -> Writer:  # noqa: ARG002
        """Begin a file."""
        return _JsonWriter(stream)


class _JsonWriter:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write_table(self, table: pa.Table) -> None:
        lines = [_line(row) for row in table.to_pylist()]
        self._stream.write("".join(lines).encode())

    def close(self) -> None:
        """Nothing comes at the end."""


def _line(row: dict[str, Any]) -> str:
    try:
        text = json.dumps(row, default=_plain, allow_nan=False, ensure_ascii=False)
    except ValueError:  # JSON has no NaN
        text = json.dumps(_finite(row), default=_plain, ensure_ascii=False)
    return f"{text}\n"


def _plain(value: Any) -> Any:
    match value:
        case datetime.timedelta():
            return value.total_seconds()
        case datetime.date() | datetime.time():
            return value.isoformat()
        case Decimal():
            return str(value)
        case _:
            raise DataError(f"write_json: JSON has nothing for a {type(value).__name__}")


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {name: _finite(one) for name, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
        case _:
            return value


@dataclass(frozen=True)
class Numpy(Encoder):
    """One column as an array of numpy.

    Attributes:
        column: Which.
    """

    column: str
    extension = "npy"

    def check(self, schema: pa.Schema) -> None:
        """Refuse a column that is not there."""
        check_columns([self.column], schema.names, "write_numpy")

    def open(self, stream: Any, schema: pa.Schema) -> Writer:  # noqa: ARG002
        """Begin a file."""
        return _NumpyWriter(stream, self.column)


class _NumpyWriter:
    """Writes an array when all of it is there: its length comes first."""

    def __init__(self, stream: Any, column: str) -> None:
        self._stream = stream
        self._column = column
        self._parts: list[dict[str, np.ndarray]] = []

    def write_table(self, table: pa.Table) -> None:
        self._parts.append(values.numpy_from_table(table.select([self._column])))

    def close(self) -> None:
        array = values.concat_numpy(self._parts)[self._column]
        if array.dtype == object and all(isinstance(one, str) for one in array):
            array = array.astype(np.str_)
        if array.dtype == object:
            raise DataError(
                f"write_numpy: column {self._column!r} is no array: its rows have different "
                "shapes, or are objects; write_parquet() takes it"
            )
        np.save(self._stream, array, allow_pickle=False)


def _refuse(schema: pa.Schema, what: str, is_wrong: Callable[[pa.DataType], bool]) -> None:
    for one in schema:
        if isinstance(one.type, pa.BaseExtensionType) or is_wrong(one.type):
            raise DataError(
                f"column {one.name!r} is {one.type}, which {what} has nothing for; leave it out "
                "with drop_columns(), or write Parquet"
            )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pat.is_binary(kind) or pat.is_large_binary(kind) or pat.is_fixed_size_binary(kind))


def _without_dictionaries(table: pa.Table) -> pa.Table:
    for index, one in enumerate(table.schema):
        if pat.is_dictionary(one.type):
            decoded = table.column(index).cast(one.type.value_type)
            table = table.set_column(index, one.name, decoded)
    return table
