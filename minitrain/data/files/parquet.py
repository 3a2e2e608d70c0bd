"""Parquet files: a block is a row group, or several small ones that lie together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minitrain.data.context import DataContext
from minitrain.data.files.filters import columns_of
from minitrain.data.files.footers import (
    Filter,
    Footer,
    Group,
    footers_in_one_file,
    open_parquet,
    read_footer,
    row_bytes,
)
from minitrain.data.files.paths import File
from minitrain.data.files.schemas import differences, fit
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
from minitrain.data.plans.tables import in_tables, sliced
from minitrain.exceptions import DataError, DataFileError, SchemaMismatchError

__all__ = ["EXTENSIONS", "ParquetBlock", "ParquetSource", "TensorColumns"]

EXTENSIONS = ("parquet", "pq", "parq")
TensorColumns = Mapping[str, tuple[Any, tuple[int, ...]]]
Groups = tuple[tuple[int, int], ...]

_AHEAD = 4
_AHEAD_REMOTE = 64
_SMALL_GROUP_BYTES = 32 << 20
_MOST_TEXT_ROWS = 32 * 1024
"""Strings may be stored once for many rows, which then take more memory than the file says."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """What the blocks of a source have in common.

    Attributes:
        stored: The columns that are read, with the types of the first file.
        constants: Those that a file's path stands for.
        schema: What is returned.
    """

    stored: pa.Schema
    constants: pa.Schema
    schema: pa.Schema
    predicate: pc.Expression | None
    tensors: TensorColumns
    on_error: OnError
    skips: Skips

    @property
    def filtered(self) -> pa.Schema:
        """What a filter is applied to."""
        return pa.schema([*_with_tensor_types(self.stored, self.tensors), *self.constants])

    def typed(self, table: pa.Table) -> pa.Table:
        """Return rows as they are stored with the types of the first file."""
        table = fit(table, self.stored)
        for name, (dtype, shape) in self.tensors.items():
            if name in table.column_names:
                index = table.column_names.index(name)
                table = table.set_column(index, name, _tensors(table.column(name), dtype, shape))
        return table

    def chosen(self, table: pa.Table, values: Mapping[str, Any], where: str) -> pa.Table:
        """Return what is wanted of typed rows.

        Raises:
            DataError: The filter fails.
        """
        if self.predicate is not None:
            table = with_constants(table, self.filtered, values)
            try:
                table = table.filter(self.predicate)
            except pa.ArrowException as error:
                raise DataError(
                    f"the filter {self.predicate} fails: {_reason(error)}, at rows of {where}"
                ) from error
        return with_constants(table, self.schema, values)

    def for_counting(self) -> _Reading:
        """Return the same with only those columns that decide which rows there are."""
        if self.predicate is None:
            return replace(self, stored=pa.schema([]), schema=pa.schema([]))
        names = columns_of(self.predicate, self.filtered, "read_parquet")
        stored = pa.schema([one for one in self.stored if one.name in names])
        return replace(self, stored=stored, schema=pa.schema([]))


@dataclass(frozen=True, slots=True, eq=False)
class ParquetBlock(Block):
    """Row groups of a file that lie next to each other.

    Attributes:
        file: The file.
        groups: Their numbers in the file, and how many rows each has.
        values: What the columns are that the file's path stands for.
        reading: What is read of them.
    """

    file: File
    groups: Groups
    rows: int | None
    size_bytes: int | None
    values: Mapping[str, Any]
    reading: _Reading

    def __reduce__(self) -> tuple[Any, ...]:
        # Slotted dataclasses look up their fields for each object; there may be a million of these.
        return ParquetBlock, (
            *(self.file, self.groups, self.rows, self.size_bytes, self.values, self.reading),
        )

    @property
    def name(self) -> str:  # type: ignore[override]
        """The file and its row groups."""
        return _named(self.file, self.groups)

    @property
    def is_remote(self) -> bool:
        """Whether the file is."""
        return not self.file.is_local

    @property
    def reading_bytes(self) -> int:
        """What the reader holds of the largest row group: compressed pages, dictionaries, pages.

        Measured with pyarrow 26: 3 times the size of the rows, whose columns it decodes together.
        """
        whole, total = self.size_bytes or 0, sum(rows for _, rows in self.groups)
        return 3 * whole * max(rows for _, rows in self.groups) // max(total, 1)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield rows; row groups that lie before ``start`` are not read."""
        groups = self._readable()
        if self.reading.predicate is None:
            groups, start, stop = _needed(groups, start, stop)
        yield from sliced(_tables(self.file, groups, self.values, self.reading), start, stop)

    def count(self) -> int:
        """Return how many rows there are, reading only what a filter looks at."""
        if self.rows is not None:
            return self.rows
        groups = self._readable()
        if self.reading.predicate is None:
            return sum(rows for _, rows in groups)
        reading = self.reading.for_counting()
        return sum(t.num_rows for t in _tables(self.file, groups, self.values, reading))

    def _readable(self) -> Groups:
        """Return the row groups, or, where bad ones are skipped, those that can be decoded.

        That must be known before a row is handed over: a row group is skipped as a whole, each
        time it is read and in each process.
        """
        if self.reading.on_error == "raise":
            return self.groups
        names = tuple(self.reading.stored.names)
        key = (self.file.path, self.file.changed_ns, self.file.size_bytes, self.groups, names)
        return _tested.get(key, self._test)

    def _test(self) -> Groups:
        reading, good = replace(self.reading, predicate=None), []
        for group in self.groups:
            try:
                for _ in _tables(self.file, (group,), self.values, reading):
                    pass
            except (DataFileError, SchemaMismatchError) as error:
                self.reading.skips.note((self.file.path, group[0]), error)
            else:
                good.append(group)
        return tuple(good)


_tested: Tested[Groups] = Tested()


def _tables(
    file: File, groups: Groups, values: Mapping[str, Any], reading: _Reading
) -> Iterator[pa.Table]:
    """Yield the wanted rows of row groups, in tables of a bounded size."""
    if not groups:
        return
    where = _named(file, groups)
    for typed in _typed(file, groups, reading):
        table = reading.chosen(typed, values, where)
        if table.num_rows:
            yield table


def _typed(file: File, groups: Groups, reading: _Reading) -> Iterator[pa.Table]:
    """Yield all rows of row groups, with the columns and types that blocks share."""
    if not reading.stored.names:
        for rows in _pieces(sum(rows for _, rows in groups)):
            yield pa.table({"": pa.nulls(rows)}).select([])
        return
    with _errors_named(file, groups, reading):
        for decoded in _decoded(file, groups, reading.stored):
            with _mismatches_named(file, groups):
                table = reading.typed(decoded)
            yield table


def _pieces(rows: int, size: int = 1 << 20) -> Iterator[int]:
    for first in range(0, rows, size):
        yield min(size, rows - first)


def _decoded(file: File, groups: Groups, stored: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of row groups; a small one is decoded at once, which is faster by a third."""
    target = DataContext.get_current().target_table_bytes
    parquet = open_parquet(file)
    try:
        size = row_bytes(parquet.metadata, stored.names)
        is_fixed = all(_is_fixed(one.type) for one in stored)
        for number, rows in groups:
            if is_fixed and rows * size <= _SMALL_GROUP_BYTES:
                table = parquet.read_row_group(number, columns=stored.names)
                yield from in_tables(table, target)
                continue
            many = _batch_rows(parquet.metadata, stored)
            for batch in parquet.iter_batches(many, row_groups=[number], columns=stored.names):
                yield pa.Table.from_batches([batch])
    finally:
        parquet.close(force=True)


def _batch_rows(metadata: pq.FileMetaData, stored: pa.Schema) -> int:
    target = DataContext.get_current().target_table_bytes
    rows = max(1, target // row_bytes(metadata, stored.names))
    fixed = all(_is_fixed(one.type) for one in stored)
    return rows if fixed else min(rows, _MOST_TEXT_ROWS)


def _is_fixed(kind: pa.DataType) -> bool:
    try:
        return bool(kind.bit_width > 0)
    except ValueError:
        return False


@contextmanager
def _errors_named(file: File, groups: Groups, reading: _Reading) -> Iterator[None]:
    """Say which file, and which of its row groups, cannot be decoded."""
    try:
        yield
    except (OSError, pa.ArrowException, ValueError) as error:
        if isinstance(error, DataError) or not is_corruption(error):
            raise
        bad = groups if len(groups) == 1 else _first_bad(file, groups, reading.stored)
        raise DataFileError(
            f"{_named(file, bad)}: cannot be decoded: {_reason(error)}. Write the file again, or "
            'leave out what is bad with on_error="skip"'
        ) from error


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _first_bad(file: File, groups: Groups, stored: pa.Schema) -> Groups:
    for group in groups:
        try:
            for _ in _decoded(file, (group,), stored):
                pass
        except (OSError, pa.ArrowException):
            return (group,)
    return groups


@contextmanager
def _mismatches_named(file: File, groups: Groups) -> Iterator[None]:
    """Say where a value does not fit into the first file's type."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise SchemaMismatchError(
            f"{_named(file, groups)}: a value does not fit the first file's type: {error}"
        ) from error


def _named(file: File, groups: Groups) -> str:
    first, last = groups[0][0], groups[-1][0]
    return f"{file}, row group" + (f" {first}" if first == last else f"s {first} to {last}")


def _needed(groups: Groups, start: int, stop: int | None) -> tuple[Groups, int, int | None]:
    """Return only the row groups that have rows in a range, and the range among their rows."""
    chosen, offset, skipped = [], 0, 0
    for number, rows in groups:
        if offset + rows <= start:
            skipped += rows
        elif stop is None or offset < stop:
            chosen.append((number, rows))
        offset += rows
    return tuple(chosen), start - skipped, None if stop is None else stop - skipped


# Tensors that were written as bytes.


def _with_tensor_types(schema: pa.Schema, tensors: TensorColumns) -> pa.Schema:
    return pa.schema([(one.name, _tensor_type(one, tensors)) for one in schema])


def _tensor_type(one: pa.Field, tensors: TensorColumns) -> pa.DataType:
    if one.name not in tensors:
        return one.type
    dtype, shape = tensors[one.name]
    return pa.fixed_shape_tensor(pa.from_numpy_dtype(np.dtype(dtype)), tuple(shape))


def _tensors(column: pa.ChunkedArray, dtype: Any, shape: Sequence[int]) -> pa.ChunkedArray:
    """Take the bytes of each row for a tensor, which ``ndarray.tobytes()`` has written."""
    kind = np.dtype(dtype)
    rows = [np.frombuffer(row.as_py() or b"", kind) for row in column]
    size = int(np.prod(shape))
    wrong = next((row.size for row in rows if row.size != size), None)
    if wrong is not None:
        raise pa.ArrowInvalid(f"{wrong} numbers do not make a tensor of shape {tuple(shape)}")
    flat = np.concatenate(rows) if rows else np.empty(0, kind)
    tensor = pa.fixed_shape_tensor(pa.from_numpy_dtype(kind), tuple(shape))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(flat), size)
    return pa.chunked_array([pa.ExtensionArray.from_storage(tensor, storage)])


# The source.


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetSource(FileSource):
    """Reads Parquet files.

    Attributes:
        tensors: Columns of bytes that hold tensors, with their dtypes and shapes.
    """

    can_filter: ClassVar[bool] = True

    kind: str = "read_parquet"
    tensors: TensorColumns = field(default_factory=dict)
    _first: Once[tuple[str, pa.Schema]] = field(default_factory=Once, repr=False)
    _one_file: Once[dict[str, Footer] | None] = field(default_factory=Once, repr=False)

    def schema(self) -> pa.Schema:
        """Return the columns, from the first file."""
        _, stored = self._first.get(self._find_first)
        tensors = _with_tensor_types(stored, self.tensors)
        return self.selected(pa.schema([*tensors, *self.where.constants(but=stored.names)]))

    def blocks(self) -> Iterator[Block]:
        """List the blocks; footers are read in threads, some files ahead."""
        files = self.where.files()
        stored_bytes = self._stored_bytes(files)
        reading, wanted = self._reading()
        together = self._one_file.get(lambda: footers_in_one_file(files))

        def footer(file: File) -> Footer | None:
            if together is not None and wanted is None:
                return together[file.path]
            return self._checked_footer(file, wanted)

        threads = _AHEAD if files[0].is_local else _AHEAD_REMOTE
        several = len(files) > 1 and (together is None or wanted is not None)
        footers = ahead(footer, files, threads) if several else map(footer, files)
        for file, found in zip(files, footers, strict=True):
            if found is not None:
                yield from self._joined(file, found, reading, stored_bytes)

    def _reading(self) -> tuple[_Reading, Filter | None]:
        _, stored = self._first.get(self._find_first)
        constants, schema = self.where.constants(but=stored.names), self.schema()
        everything = pa.schema([*_with_tensor_types(stored, self.tensors), *constants])
        needed, wanted = set(schema.names), None
        if self.predicate is not None:
            looked_at = columns_of(self.predicate, everything, self.kind)
            needed |= set(looked_at)
            wanted = Filter(self.predicate, looked_at, constants)
        reading = _Reading(
            stored=pa.schema([one for one in stored if one.name in needed]),
            constants=constants,
            schema=schema,
            predicate=self.predicate,
            tensors=self.tensors,
            on_error=self.on_error,
            skips=self.skips,
        )
        return reading, wanted

    def _find_first(self) -> tuple[str, pa.Schema]:
        for file in self.where.files():
            footer = self._footer(file, None)
            if footer is not None:
                return str(file), footer.schema
        raise DataFileError(f"{self.describe()}: no file can be read; {self.skips.first}")

    def _footer(self, file: File, wanted: Filter | None) -> Footer | None:
        values = {} if wanted is None else self.where.values(file)
        try:
            return read_footer(file, wanted, values)
        except FileNotFoundError as error:
            raise DataFileError(f"{file}: is no longer there") from error
        except (OSError, pa.ArrowException) as error:
            if not is_corruption(error):
                raise
            problem = DataFileError(
                f"{file}: is not a Parquet file, or its end is missing: {_reason(error)}. "
                'on_error="skip" leaves such files out'
            )
            if self.on_error == "raise":
                raise problem from error
            self.skips.note((file.path, "footer"), problem)
            return None

    def _checked_footer(self, file: File, wanted: Filter | None) -> Footer | None:
        """Return a footer whose columns fit those of the first file."""
        name, first = self._first.get(self._find_first)
        footer = self._footer(file, None)
        if footer is None:
            return None
        chosen = first if self.columns is None else self._stored_columns(first, wanted)
        problem = differences(footer.schema, chosen, extra=self.columns is None)
        if not problem:
            return self._footer(file, wanted) if wanted is not None else footer
        error = SchemaMismatchError(
            f"{file} and {name} have different columns: in the former, {problem}. "
            "Read them apart, or only the columns they share (columns=[...])"
        )
        if self.on_error == "raise":
            raise error
        self.skips.note((file.path, "schema"), DataFileError(str(error)))
        return None

    def _stored_columns(self, first: pa.Schema, wanted: Filter | None) -> pa.Schema:
        needed = {*(self.columns or ()), *(() if wanted is None else wanted.columns)}
        return pa.schema([one for one in first if one.name in needed])

    def _joined(
        self, file: File, footer: Footer, reading: _Reading, stored_bytes: int | None
    ) -> Iterator[Block]:
        """Make blocks of the row groups of a file."""
        values = self.where.values(file)
        share = _share(footer.schema, reading.stored)
        for groups in _blocks(footer.groups, file, stored_bytes):
            known = self.on_error == "raise" and all(group.all_match for group in groups)
            yield ParquetBlock(
                file=file,
                groups=tuple((group.number, group.rows) for group in groups),
                rows=sum(group.rows for group in groups) if known else None,
                size_bytes=round(share * sum(group.size_bytes for group in groups)),
                values=values,
                reading=reading,
            )

    def _stored_bytes(self, files: Sequence[File]) -> int | None:
        """Return how much of a file makes a block, where it was said how many there are to be."""
        if self.override_num_blocks is None:
            return None
        return max(1, sum(file.size_bytes for file in files) // self.override_num_blocks)


def _share(schema: pa.Schema, stored: pa.Schema) -> float:
    """Guess which part of a row the columns that are read make up."""
    return 1.0 if not schema.names else sum(map(_width, stored)) / sum(map(_width, schema))


def _width(one: pa.Field) -> int:
    return one.type.bit_width if _is_fixed(one.type) else 256


def _blocks(groups: Sequence[Group], file: File, stored_bytes: int | None) -> Iterator[list[Group]]:
    """Divide the row groups of a file: as their sizes ask for, or into parts of about a size."""
    if stored_bytes is None:
        target = DataContext.get_current().target_block_bytes
        return _together(groups, target, small_bytes=target // 4)
    number = max(1, round(file.size_bytes / stored_bytes))
    target = -(-sum(group.size_bytes for group in groups) // number)
    return _together(groups, target, small_bytes=target)


def _together(
    groups: Sequence[Group], target_bytes: int, *, small_bytes: int
) -> Iterator[list[Group]]:
    """Join small row groups that lie next to each other; large ones stay alone."""
    joined: list[Group] = []
    size = 0
    for group in groups:
        small = group.size_bytes <= small_bytes
        next_to = bool(joined) and group.number == joined[-1].number + 1
        if joined and (not small or not next_to or size + group.size_bytes > target_bytes):
            yield joined
            joined, size = [], 0
        if small:
            joined.append(group)
            size += group.size_bytes
        else:
            yield [group]
    if joined:
        yield joined
