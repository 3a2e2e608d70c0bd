"""Writes datasets to files."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from minitrain.data.context import DataContext
from minitrain.data.files.paths import PathLike
from minitrain.data.files.source import NULL_PARTITION
from minitrain.data.plans.columns import known_schema
from minitrain.data.plans.functions import check_count
from minitrain.data.plans.groups import grouped_by
from minitrain.data.plans.plan import Node
from minitrain.data.plans.steps import check_columns, names_of
from minitrain.data.values import concat_tables, converted_column
from minitrain.data.writing.encoders import Csv, Encoder, JsonLines, Numpy, Parquet, Writer
from minitrain.data.writing.output import OutputFolder, SaveMode
from minitrain.exceptions import ConfigurationError, DataError

__all__ = ["Writes"]

_FILE_BYTES = 512 << 20
"""About how much of the memory of Arrow goes into one file."""
_OPEN_FILES = 64
"""So many partitions are written to at a time; another one begins a new file."""


class Writes(ABC):
    """The methods of a dataset that write it to files."""

    plan: Node

    @abstractmethod
    def _tables(self) -> Generator[pa.Table, None, None]:
        """Yield all rows of the first epoch."""

    def write_parquet(
        self,
        path: PathLike,
        *,
        partition_cols: str | Sequence[str] | None = None,
        filesystem: Any = None,
        try_create_dir: bool = True,
        min_rows_per_file: int | None = None,
        max_rows_per_file: int | None = None,
        mode: SaveMode | str = SaveMode.APPEND,
        **arrow_parquet_args: Any,
    ) -> None:
        """Write Parquet files to a folder; read back, their rows have the same order.

        The files appear when all of them are complete: a write that is interrupted leaves nothing
        that a reader would take. So a folder that this dataset reads may be overwritten.

        Args:
            path: The folder: a path or a URI.
            partition_cols: Make a folder ``column=value`` for each value of this column, or of
                each of these.
            filesystem: Where the folder is, if it is no URI: pyarrow's or fsspec's.
            try_create_dir: Make folders that are not there.
            min_rows_per_file: Begin no other file before so many rows; by default a file has about
                512 MiB of Arrow's memory.
            max_rows_per_file: Begin another file after so many rows.
            mode: What becomes of files that are there: ``"append"``, ``"overwrite"``, ``"error"``
                or ``"ignore"``, which then writes nothing.
            arrow_parquet_args: Of ``pyarrow.parquet.ParquetWriter``, such as ``compression``.

        Raises:
            ConfigurationError: There is a file at the path, or there are files and they must not
                be there.
            DataError: Something is wrong with the rows.
        """
        folder = OutputFolder(path, filesystem, mode, create=try_create_dir)
        sizes = _Sizes.of(min_rows_per_file, max_rows_per_file)
        self._write(folder, Parquet(arrow_parquet_args), sizes, partition_cols)

    def write_csv(
        self,
        path: PathLike,
        *,
        partition_cols: str | Sequence[str] | None = None,
        filesystem: Any = None,
        try_create_dir: bool = True,
        min_rows_per_file: int | None = None,
        max_rows_per_file: int | None = None,
        mode: SaveMode | str = SaveMode.APPEND,
        **arrow_csv_args: Any,
    ) -> None:
        """Write CSV files to a folder; arguments are those of :meth:`write_parquet`, but for one.

        Args:
            path: The folder.
            partition_cols: Make folders for the values of these columns.
            filesystem: Where the folder is.
            try_create_dir: Make folders that are not there.
            min_rows_per_file: Begin no other file before so many rows.
            max_rows_per_file: Begin another file after so many rows.
            mode: What becomes of files that are there.
            arrow_csv_args: Of ``pyarrow.csv.CSVWriter``, such as ``write_options``.

        Raises:
            DataError: A column holds tensors, lists, objects or bytes.
        """
        folder = OutputFolder(path, filesystem, mode, create=try_create_dir)
        sizes = _Sizes.of(min_rows_per_file, max_rows_per_file)
        self._write(folder, Csv(arrow_csv_args), sizes, partition_cols)

    def write_json(
        self,
        path: PathLike,
        *,
        partition_cols: str | Sequence[str] | None = None,
        filesystem: Any = None,
        try_create_dir: bool = True,
        min_rows_per_file: int | None = None,
        max_rows_per_file: int | None = None,
        mode: SaveMode | str = SaveMode.APPEND,
    ) -> None:
        """Write files with a JSON object per line; arguments are those of :meth:`write_parquet`.

        NaN and infinity become null, times ISO 8601, decimals text.

        Raises:
            DataError: A column holds tensors, objects or bytes.
        """
        folder = OutputFolder(path, filesystem, mode, create=try_create_dir)
        sizes = _Sizes.of(min_rows_per_file, max_rows_per_file)
        self._write(folder, JsonLines(), sizes, partition_cols)

    def write_numpy(
        self,
        path: PathLike,
        *,
        column: str,
        filesystem: Any = None,
        try_create_dir: bool = True,
        min_rows_per_file: int | None = None,
        max_rows_per_file: int | None = None,
        mode: SaveMode | str = SaveMode.APPEND,
    ) -> None:
        """Write one column to files of numpy; other arguments are those of :meth:`write_parquet`.

        Args:
            path: The folder.
            column: The column; its rows must have one shape.
            filesystem: Where the folder is.
            try_create_dir: Make folders that are not there.
            min_rows_per_file: Begin no other file before so many rows.
            max_rows_per_file: Begin another file after so many rows.
            mode: What becomes of files that are there.
        """
        folder = OutputFolder(path, filesystem, mode, create=try_create_dir)
        self._write(folder, Numpy(column), _Sizes.of(min_rows_per_file, max_rows_per_file))

    def _write(
        self,
        folder: OutputFolder,
        encoder: Encoder,
        sizes: _Sizes,
        partition_cols: str | Sequence[str] | None = None,
    ) -> None:
        keys = () if partition_cols is None else names_of("partition_cols", partition_cols)
        if folder.is_left_alone:
            return
        schema = known_schema(self.plan)
        files = _Files(folder, encoder, sizes, keys)
        if schema is not None:
            files.check(schema)
        try:
            with closing(self._tables()) as tables:
                for table in _of_one_schema(_larger(tables)):
                    files.write(table)
            if files.are_none and schema is not None:
                files.write_nothing(schema)
            files.close()
            folder.finish()
        except BaseException:
            files.abandon()
            folder.give_up()
            raise


@dataclass(frozen=True)
class _Sizes:
    """How many rows go into a file."""

    min_rows: int
    max_rows: int | None

    @classmethod
    def of(cls, min_rows: int | None, max_rows: int | None) -> _Sizes:
        for name, rows in [("min_rows_per_file", min_rows), ("max_rows_per_file", max_rows)]:
            if rows is not None:
                check_count(name, rows)
        if min_rows is not None and max_rows is not None and min_rows > max_rows:
            raise ConfigurationError(
                f"min_rows_per_file={min_rows} is more than max_rows_per_file={max_rows}"
            )
        return cls(min_rows or 0, max_rows)

    def room(self, rows: int) -> int | None:
        """Return how many more rows go into a file that has so many; None: any number."""
        return None if self.max_rows is None else self.max_rows - rows

    def is_full(self, rows: int, size_bytes: int) -> bool:
        """Tell whether another file begins."""
        return rows == self.max_rows or (rows >= self.min_rows and size_bytes >= _FILE_BYTES)


class _File:
    """A file that is being written."""

    def __init__(self, stream: Any, writer: Writer) -> None:
        self._stream = stream
        self._writer = writer
        self.rows = 0
        self.size_bytes = 0

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)
        self.rows += table.num_rows
        self.size_bytes += table.nbytes

    def close(self) -> None:
        with self._stream:
            self._writer.close()

    def abandon(self) -> None:
        """Close the file as it is: it is deleted then."""
        with contextlib.suppress(Exception), self._stream:
            self._writer.close()


class _Files:
    """The files of a write, of which each partition has one open at a time."""

    def __init__(
        self, folder: OutputFolder, encoder: Encoder, sizes: _Sizes, keys: tuple[str, ...]
    ) -> None:
        self._folder = folder
        self._encoder = encoder
        self._sizes = sizes
        self._keys = keys
        self._open: OrderedDict[str, _File] = OrderedDict()
        self.are_none = True

    def check(self, schema: pa.Schema) -> None:
        """Refuse columns that cannot be written."""
        check_columns(self._keys, schema.names, "partition_cols")
        names = [name for name in schema.names if name not in self._keys]
        if not schema.names:
            raise DataError("there is no column to write")
        if not names:
            raise ConfigurationError(f"partition_cols={list(self._keys)}: no other column is left")
        self._encoder.check(pa.schema([schema.field(name) for name in names]))

    def write(self, table: pa.Table) -> None:
        """Write more rows."""
        if self.are_none:
            self.check(table.schema)
        self.are_none = False
        if not self._keys:
            self._write_to("", table)
            return
        groups = grouped_by(table, self._keys, "partition_cols")
        order = np.argsort(groups.ids, kind="stable")
        ends = np.bincount(groups.ids).cumsum()
        rest = table.drop_columns(list(self._keys)).take(pa.array(order))
        start = 0
        for key, end in zip(groups.keys.to_pylist(), ends.tolist(), strict=True):
            self._write_to(_subfolder(key), rest.slice(start, end - start))
            start = end

    def write_nothing(self, schema: pa.Schema) -> None:
        """Write a file without rows, if that says anything."""
        if self._encoder.keeps_schema and not self._keys:
            self._open[""] = self._begun("", schema)

    def _write_to(self, subfolder: str, table: pa.Table) -> None:
        while table.num_rows:
            file = self._open.pop(subfolder, None) or self._begun(subfolder, table.schema)
            self._open[subfolder] = file  # as the one that was used last
            room = self._sizes.room(file.rows)
            part = table if room is None else table.slice(0, room)
            file.write(part)
            table = table.slice(part.num_rows)
            if self._sizes.is_full(file.rows, file.size_bytes):
                self._open.pop(subfolder).close()

    def _begun(self, subfolder: str, schema: pa.Schema) -> _File:
        if len(self._open) == _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        stream = self._folder.open(self._encoder.extension, subfolder)
        try:
            return _File(stream, self._encoder.open(stream, schema))
        except BaseException:
            stream.close()
            raise

    def close(self) -> None:
        """Close all files that are open."""
        while self._open:
            self._open.popitem()[1].close()

    def abandon(self) -> None:
        """Close them as they are."""
        while self._open:
            self._open.popitem()[1].abandon()


def _subfolder(key: dict[str, Any]) -> str:
    return "/".join(f"{quote(name, safe='')}={_text(value)}" for name, value in key.items())


def _text(value: Any) -> str:
    match value:
        case None:
            return NULL_PARTITION
        case bool():
            return str(value).lower()
        case _:
            return quote(str(value), safe="")


def _larger(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in tables that are worth a row group."""
    target = DataContext.get_current().target_block_bytes
    held: list[pa.Table] = []
    size = 0
    for table in tables:
        held.append(table)
        size += table.nbytes
        if size >= target:
            yield concat_tables(held)
            held, size = [], 0
    if held:
        yield concat_tables(held)


def _of_one_schema(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables with the columns of the first."""
    schema: pa.Schema | None = None
    for table in tables:
        if schema is None:
            schema = table.schema
        yield table if table.schema.equals(schema) else _fitted(table, schema)


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if set(table.column_names) != set(schema.names):
        raise DataError(
            f"the first rows have the columns {schema.names}, later ones {table.column_names}; "
            "all files of a dataset must have the same"
        )
    columns = []
    for one in schema:
        column = table.column(one.name)
        try:
            columns.append(converted_column(column, one.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"column {one.name!r} is {one.type} in the first rows and {column.type} later, "
                f"which cannot become it: {error}. A file has the types of its first rows: have "
                "the function return one type, with astype() or cast(), or materialize() first, "
                "which finds a type for all rows"
            ) from error
    return pa.Table.from_arrays(columns, schema=schema)
