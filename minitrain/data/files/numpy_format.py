"""Files of numpy: the first axis of an array is the rows, a block is some of them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from minitrain.data.context import DataContext
from minitrain.data.files.paths import File
from minitrain.data.files.source import FileSource, Once, ahead, is_corruption, with_constants
from minitrain.data.plans.block import Block
from minitrain.data.values.to_arrow import array_from_numpy
from minitrain.exceptions import DataFileError, SchemaMismatchError

__all__ = ["NumpyBlock", "NumpySource"]

_BAD = (OSError, ValueError, EOFError, pickle.UnpicklingError)
_COLUMN = "data"
_HEADERS_AHEAD = 4
_HEADERS_AHEAD_REMOTE = 64


@dataclass(frozen=True, slots=True)
class _Header:
    """What a file says before its values.

    Attributes:
        offset: Where its values begin.
        by_row: Whether rows lie one after the other, as values that are no objects.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_row: bool

    @property
    def row_bytes(self) -> int:
        return max(1, int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """What the blocks of a source have in common."""

    dtype: np.dtype[Any]
    schema: pa.Schema
    allow_pickle: bool


@dataclass(frozen=True, slots=True, eq=False)
class NumpyBlock(Block):
    """Consecutive rows of an array in a file."""

    file: File
    header: _Header
    start: int
    stop: int
    values: Mapping[str, Any]
    reading: _Reading

    @property
    def name(self) -> str:  # type: ignore[override]
        """The file, and which rows."""
        return f"{self.file}, rows {self.start:,} to {self.stop:,}"

    @property
    def rows(self) -> int:  # type: ignore[override]
        """How many rows."""
        return self.stop - self.start

    @property
    def size_bytes(self) -> int:  # type: ignore[override]
        """What they take in memory."""
        return self.rows * self.header.row_bytes

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield rows; those of a local file are not copied."""
        first = self.start + start
        last = self.stop if stop is None else min(self.stop, self.start + stop)
        step = max(1, DataContext.get_current().target_table_bytes // self.header.row_bytes)
        if not self.header.by_row and first < last:
            whole = _load(self.file, allow_pickle=self.reading.allow_pickle)
            yield self._table(whole[first:last])
            return
        for begin in range(first, last, step):
            yield self._table(self._rows(begin, min(begin + step, last)))

    def _rows(self, start: int, stop: int) -> np.ndarray:
        header = self.header
        stream = _opened(self.file)
        with stream:
            stream.seek(header.offset + header.row_bytes * start)
            data = stream.read_buffer(header.row_bytes * (stop - start))
        if data.size < header.row_bytes * (stop - start):
            raise DataFileError(f"{self.file}: has become shorter since it was listed")
        return np.frombuffer(data, header.dtype).reshape(-1, *header.shape[1:])

    def _table(self, rows: np.ndarray) -> pa.Table:
        reading = self.reading
        column = array_from_numpy(rows.astype(reading.dtype, copy=False))
        try:
            return with_constants(pa.table({_COLUMN: column}), reading.schema, self.values)
        except pa.ArrowException as error:
            raise SchemaMismatchError(
                f"{self.file}: other objects than in the first: {error}"
            ) from error


def _opened(file: File) -> Any:
    return pa.memory_map(file.path) if file.is_local else file.filesystem.open_input_file(file.path)


def _load(file: File, *, allow_pickle: bool) -> np.ndarray:
    with file.filesystem.open_input_file(file.path) as stream:
        array: np.ndarray = np.load(io.BytesIO(stream.read()), allow_pickle=allow_pickle)
    return array


@dataclass(frozen=True, kw_only=True, eq=False)
class NumpySource(FileSource):
    """Reads files that ``numpy.save`` has written.

    Attributes:
        allow_pickle: Whether to read arrays of objects, which can run any code.
    """

    kind: str = "read_numpy"
    allow_pickle: bool = False
    _first: Once[tuple[File, _Header]] = field(default_factory=Once, repr=False)

    def schema(self) -> pa.Schema:
        """Return the columns, from the first file."""
        file, header = self._first.get(self._find_first)
        example = np.empty((0, *header.shape[1:]), header.dtype)
        if header.dtype.hasobject:
            example = _load(file, allow_pickle=self.allow_pickle)
        own = pa.field(_COLUMN, array_from_numpy(example).type)
        return self.selected(pa.schema([own, *self.where.constants(but=[_COLUMN])]))

    def blocks(self) -> Iterator[Block]:
        """List the blocks; the headers of files are read in threads, some files ahead."""
        files = self.where.files()
        first, wanted = self._first.get(self._find_first)
        reading = _Reading(
            dtype=wanted.dtype,
            schema=self.schema(),
            allow_pickle=self.allow_pickle,
        )
        threads = _HEADERS_AHEAD if files[0].is_local else _HEADERS_AHEAD_REMOTE
        headers = (
            ahead(self._header, files, threads) if len(files) > 1 else map(self._header, files)
        )
        for file, header in zip(files, headers, strict=True):
            if header is not None and self._fits(file, header, first, wanted):
                yield from self._cut(file, header, reading)

    def _cut(self, file: File, header: _Header, reading: _Reading) -> Iterator[Block]:
        values = self.where.values(file)
        size = header.row_bytes * header.shape[0]
        parts = max(1, -(-size // self._target_bytes())) if header.by_row else 1
        step = max(1, -(-header.shape[0] // parts))
        for start in range(0, header.shape[0], step):
            stop = min(start + step, header.shape[0])
            yield NumpyBlock(file, header, start, stop, values, reading)

    def _target_bytes(self) -> int:
        if self.override_num_blocks is None:
            return DataContext.get_current().target_block_bytes
        total = sum(file.size_bytes for file in self.where.files())
        return max(1, -(-total // self.override_num_blocks))

    def _find_first(self) -> tuple[File, _Header]:
        for file in self.where.files():
            header = self._header(file)
            if header is not None:
                return file, header
        raise DataFileError(f"{self.describe()}: no file can be read; {self.skips.first}")

    def _header(self, file: File) -> _Header | None:
        try:
            return self._checked_header(file)
        except FileNotFoundError as error:
            raise DataFileError(f"{file}: is no longer there") from error
        except _BAD as error:
            if not is_corruption(error):
                raise
            problem = DataFileError(f"{file}: is no array that can be read: {error}")
            if self.on_error == "raise":
                raise problem from error
            self.skips.note(file.path, problem)
            return None

    def _checked_header(self, file: File) -> _Header:
        with file.filesystem.open_input_file(file.path) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0
            if version >= (2, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            offset = stream.tell()
        if not shape:
            raise ValueError("it is a single value, without rows")
        if dtype.hasobject:
            if not self.allow_pickle:
                raise ValueError("it holds objects; allow_pickle=True reads files you trust")
            _load(file, allow_pickle=True)  # whether it can be is not to be seen before
        elif file.size_bytes < offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
            raise ValueError("its end is missing")
        return _Header(offset, shape, dtype, not fortran and not dtype.hasobject)

    def _fits(self, file: File, header: _Header, first: File, wanted: _Header) -> bool:
        same = header.shape[1:] == wanted.shape[1:]
        if same and np.can_cast(header.dtype, wanted.dtype, "safe"):
            return True
        text = (
            f"{file} and {first} do not fit together: rows of the former are {header.dtype} of "
            f"shape {header.shape[1:]}, of the latter {wanted.dtype} of shape {wanted.shape[1:]}"
        )
        if self.on_error == "raise":
            raise SchemaMismatchError(text)
        self.skips.note(file.path, DataFileError(text))
        return False
