"""What Parquet files say of themselves: columns, row groups, and which of these a filter needs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from minitrain._os.forks import unlock_in_forks
from minitrain.data.files.filters import may_meet_nan, provable
from minitrain.data.files.paths import File
from minitrain.data.files.schemas import may_be_nan, plain

__all__ = ["Footer", "Group", "footers_in_one_file", "open_parquet", "read_footer", "row_bytes"]

_METADATA_FILE = "_metadata"
_KEPT_BYTES = 32 << 20
_LARGE_GROUP_BYTES = 256 << 20
_BUFFER_BYTES = 1 << 20
_BUFFER_BYTES_REMOTE = 8 << 20


@dataclass(frozen=True, slots=True)
class Group:
    """A row group.

    Attributes:
        number: Which one of its file.
        rows: How many rows it has.
        size_bytes: About what they take in memory, with all columns.
        all_match: Whether a filter is known to keep all of them.
    """

    number: int
    rows: int
    size_bytes: int
    all_match: bool = True


@dataclass(frozen=True, slots=True)
class Footer:
    """What is known of a file without reading rows.

    Attributes:
        schema: Its columns.
        groups: Its row groups; with a filter, those that may have rows it keeps.
    """

    schema: pa.Schema
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter, for the choice of row groups.

    Attributes:
        predicate: The filter.
        columns: Those it looks at.
        constants: The columns of a file that are the same in all rows.
    """

    predicate: pc.Expression
    columns: tuple[str, ...]
    constants: pa.Schema


def read_footer(file: File, wanted: Filter | None, values: Mapping[str, Any]) -> Footer:
    """Read the footer of a file.

    Args:
        file: The file.
        wanted: Which rows will be read.
        values: What the columns are that the file's path stands for.
    """
    metadata = _metadata(file)
    schema = plain(metadata.schema.to_arrow_schema())
    size = row_bytes(metadata, schema.names)
    groups = [
        Group(number, rows, rows * size)
        for number in range(metadata.num_row_groups)
        if (rows := metadata.row_group(number).num_rows)
    ]
    if wanted is not None and groups:
        groups = _chosen(file, metadata, schema, groups, wanted, values)
    return Footer(schema, tuple(groups))


def footers_in_one_file(files: Sequence[File]) -> dict[str, Footer] | None:
    """Return the footers of all files from the ``_metadata`` file beside them, if there is one.

    It counts only if it describes exactly these files.
    """
    roots = {file.root for file in files}
    if len(roots) != 1 or len(files) == 1:
        return None
    (root,) = roots
    path, filesystem = f"{root.rstrip('/')}/{_METADATA_FILE}", files[0].filesystem
    try:
        with filesystem.open_input_file(path) as stream:
            metadata = pq.read_metadata(stream)
    except (OSError, pa.ArrowException):
        return None
    schema = plain(metadata.schema.to_arrow_schema())
    size = row_bytes(metadata, schema.names)
    groups: dict[str, list[Group]] = {}
    for index in range(metadata.num_row_groups):
        row_group = metadata.row_group(index)
        of_file = groups.setdefault(row_group.column(0).file_path, [])
        of_file.append(Group(len(of_file), row_group.num_rows, row_group.num_rows * size))
    found = {f"{root.rstrip('/')}/{name}": Footer(schema, tuple(g)) for name, g in groups.items()}
    return found if found.keys() == {file.path for file in files} else None


def row_bytes(metadata: pq.FileMetaData, names: Sequence[str]) -> int:
    """Estimate what a row takes in memory, from the first row group that has rows."""
    numbers = range(metadata.num_row_groups)
    first = next((n for n in numbers if metadata.row_group(n).num_rows), None)
    if first is None:
        return 1
    group, wanted = metadata.row_group(first), set(names)
    total = 0.0
    for index in range(metadata.num_columns):
        column = group.column(index)
        if column.path_in_schema.partition(".")[0] in wanted or column.path_in_schema in wanted:
            stored = column.total_uncompressed_size / group.num_rows
            total += max(stored, _WIDTHS.get(column.physical_type, 0))
    return max(1, round(total))


_WIDTHS = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}


def open_parquet(file: File) -> pq.ParquetFile:
    """Open a file to be read a few rows at a time; close it with ``close(force=True)``."""
    metadata = _metadata(file)
    numbers = range(metadata.num_row_groups)
    largest = max((metadata.row_group(n).total_byte_size for n in numbers), default=0)
    stream = file.filesystem.open_input_file(file.path)
    whole_group = not file.is_local and largest <= _LARGE_GROUP_BYTES
    buffer = _BUFFER_BYTES if file.is_local else _BUFFER_BYTES_REMOTE
    return pq.ParquetFile(
        stream,
        metadata=metadata,
        pre_buffer=whole_group,  # all columns in few large requests
        buffer_size=0 if whole_group else buffer,
        page_checksum_verification=True,
    )


class _Kept:
    """The footers this process has read last: a file is opened once for each of its blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        unlock_in_forks(self)
        self._kept: OrderedDict[tuple[str, int, int], tuple[File, pq.FileMetaData]] = OrderedDict()
        self._bytes = 0

    def get(self, file: File) -> pq.FileMetaData | None:
        key = (file.path, file.size_bytes, file.changed_ns)
        with self._lock:
            other, metadata = self._kept.get(key, (None, None))
            if other is None or not other.filesystem.equals(file.filesystem):
                return None
            self._kept.move_to_end(key)
            return metadata

    def put(self, file: File, metadata: pq.FileMetaData) -> None:
        with self._lock:
            key = (file.path, file.size_bytes, file.changed_ns)
            if key not in self._kept:
                self._bytes += metadata.serialized_size
            self._kept[key] = (file, metadata)
            while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
                _, (_, oldest) = self._kept.popitem(last=False)
                self._bytes -= oldest.serialized_size


_kept = _Kept()


def _metadata(file: File) -> pq.FileMetaData:
    metadata = _kept.get(file)
    if metadata is None:
        metadata = _read_metadata(file)
        _kept.put(file, metadata)
    return metadata


def _read_metadata(file: File) -> pq.FileMetaData:
    if file.is_local:
        with file.filesystem.open_input_file(file.path) as stream:
            return pq.read_metadata(stream)
    import pyarrow.dataset as pads  # brings pandas along

    # The listing has told the size: an object store is not asked for it again, which would be every
    # second request.
    fragment = pads.ParquetFileFormat().make_fragment(
        file.path, filesystem=file.filesystem, file_size=file.size_bytes
    )
    try:
        return fragment.metadata
    except OSError as error:
        if file.filesystem.get_file_info(file.path).type == FileType.NotFound:
            raise FileNotFoundError(str(error)) from error
        raise


def _chosen(
    file: File,
    metadata: pq.FileMetaData,
    schema: pa.Schema,
    groups: Sequence[Group],
    wanted: Filter,
    values: Mapping[str, Any],
) -> list[Group]:
    """Leave out row groups whose statistics say that they have no rows to be kept."""
    import pyarrow.dataset as pads  # brings pandas along

    guarantee = None
    for one in wanted.constants:
        equal = pc.field(one.name) == pa.scalar(values[one.name], one.type)
        if values[one.name] is None:
            equal = pc.field(one.name).is_null()
        guarantee = equal if guarantee is None else guarantee & equal
    extra = [one for one in wanted.constants if one.name not in schema.names]
    everything = pa.schema([*schema, *extra])
    fragment = pads.ParquetFileFormat().make_fragment(
        file.path,
        filesystem=file.filesystem,
        partition_expression=guarantee,
        file_size=file.size_bytes,
    )
    floating = {
        one.name for one in everything if one.name in wanted.columns and may_be_nan(one.type)
    }
    sure: set[int] = set()
    try:
        if may_meet_nan(wanted.predicate, floating):
            may = _numbers(fragment, provable(wanted.predicate, floating), everything)
        else:
            may = _numbers(fragment, wanted.predicate, everything)
            sure = may - _numbers(fragment, ~wanted.predicate, everything)
    except pa.ArrowException:  # no fault of the file; what fails on rows too is told there
        may = {group.number for group in groups}
    return [
        replace(
            group,
            all_match=group.number in sure
            and _describe_all_rows(metadata.row_group(group.number), schema, wanted.columns),
        )
        for group in groups
        if group.number in may
    ]


def _numbers(fragment: Any, predicate: pc.Expression | None, schema: pa.Schema) -> set[int]:
    """Return the row groups in which an expression may hold; None is one that always does."""
    parts = fragment.split_by_row_group(predicate, schema)
    return {group.id for part in parts for group in part.row_groups}


def _describe_all_rows(
    group: pq.RowGroupMetaData, schema: pa.Schema, columns: Sequence[str]
) -> bool:
    """Whether the smallest and largest values speak for all rows: not for nulls."""
    by_name = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in columns:
        if name not in schema.names:
            continue  # the same in all rows
        column = by_name.get(name)
        statistics = None if column is None else column.statistics
        if statistics is None or not statistics.has_min_max:
            return False
        if not statistics.has_null_count or statistics.null_count:
            return False
    return True
