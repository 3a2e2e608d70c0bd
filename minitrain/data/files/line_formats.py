"""CSV, JSON and plain text, as lines."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson

from minitrain.data.context import DataContext
from minitrain.data.files.lines import open_stream
from minitrain.data.files.paths import File
from minitrain.data.files.text_formats import LinesFormat, Start
from minitrain.data.plans.tables import in_tables
from minitrain.exceptions import DataError, DataFileError, SchemaMismatchError

__all__ = ["CsvFormat", "JsonFormat", "TextFormat"]

_HEAD_BYTES = 64 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, eq=False)
class CsvFormat(LinesFormat):
    """Values with commas.

    Attributes:
        read: Where the rows begin and what their columns are called.
        parsing: How a line is cut into values.
        convert: How values become numbers, dates and so on.
    """

    read: pacsv.ReadOptions = field(default_factory=pacsv.ReadOptions)
    parsing: pacsv.ParseOptions = field(default_factory=pacsv.ParseOptions)
    convert: pacsv.ConvertOptions = field(default_factory=pacsv.ConvertOptions)

    def __reduce__(self) -> tuple[Any, ...]:
        # pyarrow's own pickles come back with a handler of bad rows that cannot be called.
        return (_restored_csv, (_values(self.read), _values(self.parsing), _values(self.convert)))

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What files are written in."""
        return str(self.read.encoding)

    def start(self, file: File) -> Start:
        """Read the header."""
        with closing(open_stream(file, self.encoding)) as stream:
            head = _Head(stream)
            offset = len(_BOM) if head.at(0, len(_BOM)) == _BOM else 0
            for _ in range(self.read.skip_rows):
                offset = head.after_line(offset)
            offset = self._after_empty_lines(head, offset)
            after = head.after_line(offset)
            names = self._names(head.at(offset, after - offset))
            if self._has_header:
                offset = after
            for _ in range(self.read.skip_rows_after_names):
                offset = head.after_line(offset)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataFileError(
                f"{file}: two columns are called {twice!r}; give others, with "
                "read_options=pyarrow.csv.ReadOptions(column_names=[...], skip_rows=1)"
            )
        return Start(offset, names, whole=bool(self.parsing.newlines_in_values))

    @property
    def _has_header(self) -> bool:
        return not self.read.column_names and not self.read.autogenerate_column_names

    def _after_empty_lines(self, head: _Head, offset: int) -> int:
        while self.parsing.ignore_empty_lines and head.at(offset, 2)[:1] in {b"\n", b"\r"}:
            offset = head.after_line(offset)
        return offset

    def _names(self, line: bytes) -> tuple[str, ...]:
        if self.read.column_names:
            return tuple(self.read.column_names)
        if not line.strip(b"\r\n"):
            return ()
        table = pacsv.read_csv(
            io.BytesIO(line),
            read_options=pacsv.ReadOptions(
                autogenerate_column_names=self.read.autogenerate_column_names
            ),
            parse_options=self.parsing,
        )
        return tuple(table.column_names)

    def infer(self, data: bytes, start: Start) -> pa.Schema:
        """Let pyarrow guess."""
        return self._read(data, start, self.convert).schema

    def parse(self, data: bytes, start: Start, schema: pa.Schema, names: list[str]) -> pa.Table:
        """Turn lines into rows; a quoted value must end in the line it begins in."""
        options = self._converting(schema, names)
        table = self._read(data, start, options)
        if self._ends_in_a_value(data, start, table.num_rows):
            raise ValueError(_OPEN_QUOTE)
        return table if names else table.select([])

    def whole(
        self, file: File, start: Start, schema: pa.Schema | None, names: list[str] | None
    ) -> Iterator[pa.Table]:
        """Stream a file whose values may go over several lines."""
        del start
        convert = self.convert
        if schema is not None and names is not None:
            convert = self._converting(schema, names)
        read = _changed(self.read, block_size=DataContext.get_current().target_table_bytes)
        read = _changed(read, encoding="utf8")
        with (
            closing(open_stream(file, self.encoding)) as stream,
            pacsv.open_csv(
                stream, read_options=read, parse_options=self.parsing, convert_options=convert
            ) as reader,
        ):
            for batch in reader:
                table = pa.Table.from_batches([batch])
                yield table if names is None else table.select(names)

    def count(self, data: bytes, start: Start, schema: pa.Schema) -> int:
        """Count lines where that is enough, and parse one column where it is not."""
        quote = self.parsing.quote_char
        simple = not quote or quote.encode() not in data
        if simple and b"\r" not in data and self.parsing.invalid_row_handler is None:
            return _filled_lines(data, but_empty=bool(self.parsing.ignore_empty_lines))
        return int(self.parse(data, start, schema, schema.names[:1]).num_rows)

    def mismatch(self, start: Start, schema: pa.Schema) -> str:
        """Compare the names of a header with the first file's."""
        if self.convert.include_columns:
            return ""
        missing = [
            f"column {name!r} is missing" for name in schema.names if name not in start.names
        ]
        extra = [f"column {name!r} is extra" for name in start.names if name not in schema.names]
        return ", ".join(missing + extra)

    def explain(self, error: Exception, start: Start, schema: pa.Schema) -> tuple[str, DataError]:
        """Name the column, and say how to give it another type."""
        text = str(error).partition("\n")[0]
        place = re.match(r"In CSV column #(\d+): (CSV conversion error to [^:]*: )?(.*)", text)
        if place is None or int(place[1]) >= len(start.names):
            return "", DataFileError(text)
        name, reason = start.names[int(place[1])], place[3]
        if "UTF8" in reason or name not in schema.names:
            return name, DataFileError(reason)
        kind = schema.field(name).type
        return name, SchemaMismatchError(
            f"{reason}, and the first lines of the first file make it {kind}. To read something "
            "else, give convert_options=pyarrow.csv.ConvertOptions(column_types="
            f"{{{name!r}: pyarrow.string()}})"
        )

    def _read(self, data: bytes, start: Start, convert: pacsv.ConvertOptions) -> pa.Table:
        read = pacsv.ReadOptions(
            column_names=start.names, block_size=len(data) + 1, use_threads=self.read.use_threads
        )
        return pacsv.read_csv(
            pa.BufferReader(data),
            read_options=read,
            parse_options=self.parsing,
            convert_options=convert,
        )

    def _converting(self, schema: pa.Schema, names: list[str]) -> pacsv.ConvertOptions:
        types = {one.name: one.type for one in schema}
        include = names or schema.names[:1]
        return _changed(self.convert, column_types=types, include_columns=include)

    def _ends_in_a_value(self, data: bytes, start: Start, rows: int) -> bool:
        """Whether the last line ends inside quotes: then one more line does not make one more row.

        A quote inside a value without quotes is a character like others.
        """
        quote = self.parsing.quote_char
        if not quote or data.count(quote.encode()) % 2 == 0:
            return False
        line = self.parsing.delimiter * (len(start.names) - 1) or "x"
        more = data.rstrip(b"\r\n") + b"\n" + line.encode() + b"\n"
        as_text = _changed(
            self.convert,
            column_types=dict.fromkeys(start.names, pa.binary()),
            include_columns=list(start.names[:1]),
            include_missing_columns=False,
        )
        try:
            return bool(self._read(more, start, as_text).num_rows == rows)
        except pa.ArrowInvalid:
            return True


_OPEN_QUOTE = (
    "a value in quotes does not end in this line; if values have newlines in them, give "
    "parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)"
)


def _filled_lines(data: bytes, *, but_empty: bool) -> int:
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if but_empty and (data.startswith(b"\n") or b"\n\n" in data):
        return sum(1 for line in data.split(b"\n") if line)
    return lines


def _changed(options: Any, **changes: Any) -> Any:
    """Return pyarrow's options with some of them changed."""
    return type(options)(**(_values(options) | changes))


def _values(options: Any) -> dict[str, Any]:
    names = [name for name in dir(options) if not name.startswith("_")]
    return {name: getattr(options, name) for name in names if name not in {"equals", "validate"}}


def _restored_csv(
    read: dict[str, Any], parsing: dict[str, Any], convert: dict[str, Any]
) -> CsvFormat:
    return CsvFormat(
        read=pacsv.ReadOptions(**read),
        parsing=pacsv.ParseOptions(**parsing),
        convert=pacsv.ConvertOptions(**convert),
    )


class _Head:
    """The beginning of a stream, as much of it as was asked for."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.data = b""

    def at(self, offset: int, size: int) -> bytes:
        while len(self.data) < offset + size and self._more():
            pass
        return self.data[offset : offset + size]

    def after_line(self, offset: int) -> int:
        searched = offset
        while (newline := self.data.find(b"\n", searched)) < 0:
            searched = max(offset, len(self.data))
            if not self._more():
                return len(self.data)
        return newline + 1

    def _more(self) -> bool:
        data = self._stream.read(_HEAD_BYTES)
        self.data += bytes(data)
        return bool(data)


@dataclass(frozen=True, kw_only=True, eq=False)
class JsonFormat(LinesFormat):
    """An object in each line, or one array of them in a file.

    Attributes:
        lines: Whether it must be the former.
        parsing: What pyarrow is told of the columns.
    """

    lines: bool = False
    parsing: pajson.ParseOptions = field(default_factory=pajson.ParseOptions)
    encoding: str = "utf-8"

    @property
    def looks(self) -> bool:  # type: ignore[override]
        """Whether the beginning says how the rest is written."""
        return not self.lines

    def start(self, file: File) -> Start:
        """Find out how rows are written."""
        if self.parsing.newlines_in_values:
            return Start(whole=True)
        with closing(open_stream(file)) as stream:
            head = _Head(stream)
            end = head.after_line(0)
            while not (line := head.data[:end].strip()) and end < len(head.data):
                end = head.after_line(end)
        if line[:1] == b"[":
            return Start(whole=True)
        try:
            json.loads(line)
        except ValueError:
            closed = line.endswith(b"}")  # one line, and a bad one
            return Start(whole=line[:1] == b"{" and not closed)
        return Start()

    def infer(self, data: bytes, start: Start) -> pa.Schema:
        """Let pyarrow guess."""
        del start
        return self._read(pa.BufferReader(data), len(data), self.parsing).schema

    def parse(self, data: bytes, start: Start, schema: pa.Schema, names: list[str]) -> pa.Table:
        """Turn lines into rows."""
        del start
        table = self._read(pa.BufferReader(data), len(data), self._demanding(schema))
        return table.select(names)

    def whole(
        self, file: File, start: Start, schema: pa.Schema | None, names: list[str] | None
    ) -> Iterator[pa.Table]:
        """Read a file that is one array, or has objects over several lines."""
        del start
        with closing(open_stream(file)) as stream:
            data = bytes(stream.read())
        if data.lstrip()[:1] == b"[":
            table = _from_array(file, data, schema)
        else:
            parsing = self.parsing if schema is None else self._demanding(schema)
            parsing = _changed(parsing, newlines_in_values=True)
            table = self._read(pa.BufferReader(data), len(data), parsing)
        table = table if names is None else table.select(names)
        yield from in_tables(table, DataContext.get_current().target_table_bytes)

    def explain(self, error: Exception, start: Start, schema: pa.Schema) -> tuple[str, DataError]:
        """Name the column, where pyarrow does."""
        del start
        text = re.sub(r" in row \d+$", "", str(error).partition("\n")[0])
        place = re.search(r"Column\(/?(.*?)\) ", text)
        fits = "changed from" not in text and "unexpected" not in text and "onver" not in text
        if fits:
            return "", DataFileError(text)
        hint = f"the first lines of the first file have {', '.join(map(_described, schema))}"
        advice = "give parse_options=pyarrow.json.ParseOptions(explicit_schema=...)"
        name = place[1] if place else ""
        return name, SchemaMismatchError(f"{text}; {hint}. To read something else, {advice}")

    def _demanding(self, schema: pa.Schema) -> pajson.ParseOptions:
        unexpected = self.parsing.unexpected_field_behavior
        return pajson.ParseOptions(
            explicit_schema=schema,
            unexpected_field_behavior="ignore" if unexpected == "ignore" else "error",
        )

    def _read(self, source: Any, size: int, parsing: pajson.ParseOptions) -> pa.Table:
        return pajson.read_json(
            source, read_options=pajson.ReadOptions(block_size=size + 1), parse_options=parsing
        )


def _described(one: pa.Field) -> str:
    return f"{one.name!r} ({one.type})"


def _from_array(file: File, data: bytes, schema: pa.Schema | None) -> pa.Table:
    try:
        rows = json.loads(data)
    except ValueError as error:
        raise DataFileError(f"{file}: is no JSON array: {error}") from error
    bad = next((number for number, row in enumerate(rows) if not isinstance(row, dict)), None)
    if bad is not None:
        raise DataFileError(f"{file}: element {bad:,} of the array is no object")
    names = dict.fromkeys(name for row in rows for name in row)
    if schema is None:
        return pa.Table.from_pydict({name: [row.get(name) for row in rows] for name in names})
    extra = next((name for name in names if name not in schema.names), None)
    if extra is not None:
        raise SchemaMismatchError(f"{file}: column {extra!r} is not in the first file")
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowException, TypeError) as error:
        raise SchemaMismatchError(f"{file}: a value is no {schema}: {error}") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFormat(LinesFormat):
    """A row is a line.

    Attributes:
        drop_empty_lines: Leave out lines that have nothing but spaces.
    """

    encoding: str = "utf-8"
    drop_empty_lines: bool = True
    looks: bool = False

    def infer(self, data: bytes, start: Start) -> pa.Schema:
        """There is one column."""
        del data, start
        return pa.schema([("text", pa.string())])

    def parse(self, data: bytes, start: Start, schema: pa.Schema, names: list[str]) -> pa.Table:
        """Turn lines into rows."""
        del start
        text = data.decode("utf-8")
        lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
        if self.drop_empty_lines:
            lines = [line for line in lines if line.strip()]
        return pa.table({"text": pa.array(lines, pa.string())}, schema=schema).select(names)
