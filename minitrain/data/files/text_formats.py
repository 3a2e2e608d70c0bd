"""Text: a block is a range of a file's bytes, or a file that must be read from its beginning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from minitrain.data.context import DataContext
from minitrain.data.files.lines import (
    Piece,
    bad_line,
    can_be_cut,
    good_parts,
    is_compressed,
    line_number,
    pieces,
    ranges,
)
from minitrain.data.files.paths import File
from minitrain.data.files.source import (
    FileSource,
    Once,
    OnError,
    Skips,
    Tested,
    ahead,
    is_corruption,
    with_constants,
)
from minitrain.data.plans.block import Block
from minitrain.data.plans.tables import sliced
from minitrain.exceptions import DataError, DataFileError, SchemaMismatchError

__all__ = ["LinesBlock", "LinesFormat", "LinesSource", "Start"]

_HEADS_AHEAD = 4
_HEADS_AHEAD_REMOTE = 64
_COMPRESSED_RATIO = 4

_BAD = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Start:
    """What the beginning of a file says.

    Attributes:
        offset: Where its first row begins.
        names: Its columns, where the beginning names them.
        whole: Whether it is no file of lines, and is read from one end to the other.
    """

    offset: int = 0
    names: tuple[str, ...] = ()
    whole: bool = False


class LinesFormat(ABC):
    """How rows are written in lines.

    Attributes:
        encoding: What files are written in.
        looks: Whether the beginning of each file must be looked at.
    """

    encoding: str
    looks: bool = True

    def start(self, file: File) -> Start:
        """Look at the beginning of a file."""
        del file
        return Start()

    @abstractmethod
    def infer(self, data: bytes, start: Start) -> pa.Schema:
        """Return the columns that some lines have."""

    @abstractmethod
    def parse(self, data: bytes, start: Start, schema: pa.Schema, names: list[str]) -> pa.Table:
        """Turn some lines into rows with some of the columns.

        Raises:
            pa.ArrowException: One is not what it should be.
            ValueError: Likewise.
        """

    def whole(
        self, file: File, start: Start, schema: pa.Schema | None, names: list[str] | None
    ) -> Iterator[pa.Table]:
        """Yield the rows of a file that is no file of lines; without a schema, infer one."""
        raise NotImplementedError

    def count(self, data: bytes, start: Start, schema: pa.Schema) -> int:
        """Return how many rows some lines are."""
        return int(self.parse(data, start, schema, schema.names).num_rows)

    def mismatch(self, start: Start, schema: pa.Schema) -> str:
        """Say what is the matter with a file's columns; nothing if they are those of the first."""
        del start, schema
        return ""

    def explain(self, error: Exception, start: Start, schema: pa.Schema) -> tuple[str, DataError]:
        """Return the column that ``parse`` failed in, if it is known, and what to say of it."""
        del start, schema
        return "", DataFileError(str(error).partition("\n")[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """What the blocks of a source have in common.

    Attributes:
        stored: All columns of the first file.
        names: Those of them that are read.
        schema: What is returned.
    """

    format: LinesFormat
    stored: pa.Schema
    names: list[str]
    schema: pa.Schema
    on_error: OnError
    skips: Skips


_tested: Tested[bool] = Tested()


@dataclass(frozen=True, slots=True, eq=False)
class LinesBlock(Block):
    """The rows of a file whose lines begin in a range of its bytes.

    Attributes:
        file: The file.
        begin: What its beginning says.
        first: Where the range begins.
        end: Where it ends; None: with the file, which is read from its beginning.
    """

    file: File
    begin: Start
    first: int
    end: int | None
    values: Mapping[str, Any]
    reading: _Reading

    @property
    def name(self) -> str:  # type: ignore[override]
        """The file, and which bytes of it."""
        if self.end is None or (self.first == self.begin.offset and self.end == self._size):
            return str(self.file)
        return f"{self.file}, bytes {self.first:,} to {self.end:,}"

    @property
    def rows(self) -> None:  # type: ignore[override]
        """Not known before they are counted."""
        return

    @property
    def size_bytes(self) -> int:  # type: ignore[override]
        """As much as the text."""
        if self.end is not None:
            return self.end - self.first
        return self._size * (_COMPRESSED_RATIO if is_compressed(self.file) else 1)

    @property
    def _size(self) -> int:
        return self.file.size_bytes

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield rows."""
        yield from sliced(self._tables(), start, stop)

    def count(self) -> int:
        """Return how many rows there are; where that is enough, lines are counted."""
        reading = self.reading
        if self.begin.whole or reading.on_error == "skip":
            return sum(table.num_rows for table in self.read())
        return sum(self._counted(piece) for piece in self._pieces())

    def _counted(self, piece: Piece) -> int:
        try:
            return self.reading.format.count(piece.data, self.begin, self.reading.stored)
        except _BAD:
            return sum(table.num_rows for table in self._parsed(piece))

    def _tables(self) -> Iterator[pa.Table]:
        if not self._is_sound():
            return
        for table in self._whole() if self.begin.whole else self._by_lines():
            if table.num_rows:
                yield with_constants(table, self.reading.schema, self.values)

    def _by_lines(self) -> Iterator[pa.Table]:
        for piece in self._pieces():
            yield from self._parsed(piece)

    def _pieces(self) -> Iterator[Piece]:
        parts = pieces(
            self.file,
            self.begin.offset,
            self.first,
            self.end,
            size=DataContext.get_current().target_table_bytes,
            encoding=self.reading.format.encoding,
        )
        with _file_errors(self.file):
            yield from parts

    def _whole(self) -> Iterator[pa.Table]:
        reading = self.reading
        with _file_errors(self.file):
            yield from reading.format.whole(self.file, self.begin, reading.stored, reading.names)

    def _is_sound(self) -> bool:
        """Whether the file can be read to its end, if it is to be skipped otherwise.

        That must be known before a row is handed over: it is skipped as a whole, in each process.
        """
        if self.reading.on_error == "raise" or self.end is not None:
            return True
        key = (self.file.path, self.file.changed_ns, self.file.size_bytes, *self.reading.names)
        return _tested.get(key, self._test)

    def _test(self) -> bool:
        try:
            for _ in self._whole() if self.begin.whole else self._pieces():
                pass
        except DataError as error:
            self.reading.skips.note(self.file.path, error)
            return False
        return True

    def _parsed(self, piece: Piece) -> Iterator[pa.Table]:
        reading = self.reading

        def parse(data: bytes) -> pa.Table:
            return reading.format.parse(data, self.begin, reading.stored, reading.names)

        def skip(offset: int, error: Exception) -> None:
            reading.skips.note((self.file.path, offset), lambda: self._error(offset, error))

        if reading.on_error == "skip":
            yield from good_parts(piece, parse, skip)
            return
        try:
            table = parse(piece.data)
        except (pa.ArrowException, ValueError) as error:
            offset, line = bad_line(piece.data, parse)
            try:
                parse(line)
            except (pa.ArrowException, ValueError) as own:
                raise self._error(piece.offset + offset, own) from own
            raise self._error(piece.offset + offset, error) from error
        yield table

    def _error(self, offset: int, error: Exception) -> DataError:
        format_ = self.reading.format
        number = line_number(self.file, offset, format_.encoding)
        column, what = format_.explain(error, self.begin, self.reading.stored)
        where = f"{self.file}, line {number:,}" + (f", column {column!r}" if column else "")
        return type(what)(f"{where}: {what}")


class _file_errors:  # noqa: N801 - reads as a statement
    """Say which file cannot be read, unless it is the storage's fault."""

    def __init__(self, file: File) -> None:
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, DataError) or not isinstance(error, _BAD) or not is_corruption(error):
            return
        reason = str(error).partition("\n")[0]
        raise DataFileError(f"{self._file}: cannot be read: {reason}") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class LinesSource(FileSource):
    """Reads files of lines.

    The columns and their types are those of the first lines of the first file that has any, and
    all others must have them too.

    Attributes:
        format: How rows are written.
    """

    format: LinesFormat
    _first: Once[tuple[str, pa.Schema]] = field(default_factory=Once, repr=False)

    def schema(self) -> pa.Schema:
        """Return the columns, from the first lines."""
        _, stored = self._first.get(self._find_first)
        constants = self.where.constants(but=stored.names)
        return self.selected(pa.schema([*stored, *constants]))

    def blocks(self) -> Iterator[Block]:
        """List the blocks; the beginnings of files are read in threads, some files ahead."""
        files = [file for file in self.where.files() if file.size_bytes]
        if not files:
            return
        name, stored = self._first.get(self._find_first)
        schema = self.schema()
        reading = _Reading(
            format=self.format,
            stored=stored,
            names=[one for one in schema.names if one in stored.names],
            schema=schema,
            on_error=self.on_error,
            skips=self.skips,
        )
        threads = _HEADS_AHEAD if files[0].is_local else _HEADS_AHEAD_REMOTE
        many = self.format.looks and len(files) > 1
        starts = ahead(self._start, files, threads) if many else map(self._start, files)
        for file, start in zip(files, starts, strict=True):
            if start is not None and self._fits(file, start, stored, name):
                yield from self._cut(file, start, reading)

    def _cut(self, file: File, start: Start, reading: _Reading) -> Iterator[Block]:
        values = self.where.values(file)
        if start.whole or not can_be_cut(file, self.format.encoding):
            yield LinesBlock(file, start, start.offset, None, values, reading)
            return
        for first, end in ranges(start.offset, file.size_bytes, self._target_bytes()):
            yield LinesBlock(file, start, first, end, values, reading)

    def _target_bytes(self) -> int:
        if self.override_num_blocks is None:
            return DataContext.get_current().target_block_bytes
        total = sum(file.size_bytes for file in self.where.files())
        return max(1, -(-total // self.override_num_blocks))

    def _start(self, file: File) -> Start | None:
        try:
            with _file_errors(file):
                return self.format.start(file) if self.format.looks else Start()
        except DataError as error:
            if self.on_error == "raise":
                raise
            self.skips.note(file.path, error)
            return None

    def _fits(self, file: File, start: Start, schema: pa.Schema, first: str) -> bool:
        problem = self.format.mismatch(start, schema)
        if not problem:
            return True
        text = f"{file} and {first} have different columns: in the former, {problem}"
        if self.on_error == "raise":
            raise SchemaMismatchError(text)
        self.skips.note(file.path, DataFileError(text))
        return False

    def _find_first(self) -> tuple[str, pa.Schema]:
        """Return the first file that has lines, and what they are."""
        empty = None
        for file in self.where.files():
            start = self._start(file) if file.size_bytes else None
            if start is None:
                continue
            schema = self._inferred(file, start)
            if schema is not None:
                return str(file), schema
            empty = empty or (str(file), start.names)
        if empty is not None:
            return empty[0], pa.schema([(name, pa.null()) for name in empty[1]])
        reason = self.skips.first or "all are empty"
        raise DataFileError(f"{self.describe()}: no file has any rows; {reason}")

    def _inferred(self, file: File, start: Start) -> pa.Schema | None:
        try:
            with _file_errors(file):
                if start.whole:
                    tables = self.format.whole(file, start, None, None)
                    return next((table.schema for table in tables), None)
                return self._inferred_from_lines(file, start)
        except DataError as error:
            if self.on_error == "raise":
                raise
            self.skips.note(file.path, error)
            return None

    def _inferred_from_lines(self, file: File, start: Start) -> pa.Schema | None:
        encoding = self.format.encoding
        end = file.size_bytes if can_be_cut(file, encoding) else None
        size = DataContext.get_current().target_table_bytes
        parts = pieces(file, start.offset, start.offset, end, size=size, encoding=encoding)
        with closing(parts):
            piece = next(parts, None)
        if piece is None:
            return None
        return self._inferred_from(piece, file, start)

    def _inferred_from(self, piece: Piece, file: File, start: Start) -> pa.Schema:
        try:
            return self.format.infer(piece.data, start)
        except (pa.ArrowException, ValueError) as error:

            def infer(data: bytes) -> pa.Schema:
                return self.format.infer(data, start)

            def checked(data: bytes) -> bytes:
                self.format.infer(data, start)
                return data

            if self.on_error == "skip":
                good = b"".join(good_parts(piece, checked, lambda _offset, _error: None))
                return self.format.infer(good, start)
            offset, _ = bad_line(piece.data, infer)
            number = line_number(file, piece.offset + offset, self.format.encoding)
            reason = str(error).partition("\n")[0]
            raise DataFileError(f"{file}, line {number:,}: {reason}") from error
