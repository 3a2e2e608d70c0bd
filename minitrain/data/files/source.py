"""What sources that read files share: the list of files, partitions, and what is skipped."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import Any, ClassVar, Generic, Literal, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from minitrain._logging import logger
from minitrain._os.forks import unlock_in_forks
from minitrain.data.files.paths import File, Paths, as_paths, list_files
from minitrain.data.plans.block import Source
from minitrain.exceptions import ColumnError, ConfigurationError, DataError, DataFileError

__all__ = [
    "NULL_PARTITION",
    "PATH_COLUMN",
    "FileSet",
    "FileShuffleConfig",
    "FileSource",
    "OnError",
    "Once",
    "Shuffle",
    "Skips",
    "Tested",
    "ahead",
    "is_corruption",
]

T = TypeVar("T")
R = TypeVar("R")
OnError = Literal["raise", "skip"]

PATH_COLUMN = "path"
_SHOWN = 3
_RESULTS_KEPT = 100_000
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_STORAGE_FAILURE = re.compile(r"AWS Error|google::cloud|Google Cloud|[Cc]onnection|[Tt]imed? ?out")


@dataclass(frozen=True)
class FileShuffleConfig:
    """In which order files are read.

    Attributes:
        seed: What the order depends on; None: on the dataset's own seed.
        reseed_after_execution: Whether each epoch has another order.
    """

    seed: int | None = None
    reseed_after_execution: bool = True


Shuffle = Literal["files"] | FileShuffleConfig | None


class Once(Generic[T]):
    """Something that is found out when it is first asked for, and travels with whoever has it."""

    def __init__(self) -> None:
        self._found: list[T] = []
        self._lock = threading.Lock()
        unlock_in_forks(self)

    def get(self, find: Callable[[], T]) -> T:
        """Return it; ``find`` is called by the first."""
        with self._lock:
            if not self._found:
                self._found.append(find())
            return self._found[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restored_once, (list(self._found),))


def _restored_once(found: list[T]) -> Once[T]:
    once: Once[T] = Once()
    once._found = found  # noqa: SLF001 - its own
    return once


class Skips:
    """What ``on_error="skip"`` left out, in this process.

    Attributes:
        count: How many files, row groups or lines were left out, each counted once.
        first: What the first one was, and why.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        unlock_in_forks(self)
        self._seen: set[Any] = set()
        self._since_warning: set[Any] = set()
        self.first = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Skips, ())

    @property
    def count(self) -> int:
        """How many were left out."""
        return len(self._seen)

    def note(self, key: Any, error: Callable[[], DataError] | DataError) -> None:
        """Count something; the same key again is the same thing."""
        with self._lock:
            if not self._seen:
                self.first = str(error if isinstance(error, DataError) else error())
            self._seen.add(key)
            self._since_warning.add(key)

    def warn(self, kind: str, files: int) -> None:
        """Log what was left out since the last call: for the end of an iteration."""
        with self._lock:
            number = len(self._since_warning)
            self._since_warning.clear()
        if number:
            logger.warning(
                "%s: skipped %s of what %s files hold, the first: %s",
                kind,
                f"{number:,}",
                f"{files:,}",
                self.first,
            )


class Tested(Generic[T]):
    """What this process has read to see whether it is sound, and what came of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        unlock_in_forks(self)
        self._results: OrderedDict[Any, T] = OrderedDict()

    def get(self, key: Any, test: Callable[[], T]) -> T:
        """Return the result for a key; ``test`` is called by the first to ask."""
        with self._lock:
            if key in self._results:
                return self._results[key]
        result = test()
        with self._lock:
            self._results[key] = result
            if len(self._results) > _RESULTS_KEPT:
                self._results.popitem(last=False)
        return result


def is_corruption(error: BaseException) -> bool:
    """Whether a file is at fault, and not the storage it lies on."""
    if isinstance(error, OSError):
        return error.errno is None and not _STORAGE_FAILURE.search(str(error))
    return isinstance(
        error, pa.ArrowException | ValueError | EOFError | SyntaxError | UnpicklingError
    )


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield ``function(item)`` in order, working at most ``2 * threads`` items ahead."""
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="minitrain-files") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True, kw_only=True, eq=False)
class FileSet:
    """The files of a dataset, and the columns that their paths stand for.

    They are listed when they are first asked for. Whoever gets a copy after that has the same
    list, whatever has become of the folder.
    """

    paths: tuple[str, ...]
    filesystem: Any = None
    extensions: tuple[str, ...] | None = None
    partitioning: Any = "hive"
    partition_filter: Callable[[str], bool] | None = None
    include_paths: bool = False
    ignore_missing_paths: bool = False
    _listed: Once[tuple[File, ...]] = field(default_factory=Once, repr=False)
    _partitions: Once[_Partitions] = field(default_factory=Once, repr=False)

    def files(self) -> tuple[File, ...]:
        """Return the files, sorted by path."""
        return self._listed.get(self._list)

    def constants(self, but: Iterable[str] = ()) -> pa.Schema:
        """Return the columns that are the same in all rows of a file, without some.

        Raises:
            ConfigurationError: Paths are to be included, and there is a column of their name.
        """
        taken, partitions = set(but), self._partitions.get(self._find_partitions).schema
        fields = [one for one in partitions if one.name not in taken]
        if self.include_paths:
            if PATH_COLUMN in taken.union(partitions.names):
                raise ConfigurationError(
                    f"include_paths=True: the files have a column {PATH_COLUMN!r} of their own"
                )
            fields.append(pa.field(PATH_COLUMN, pa.string()))
        return pa.schema(fields)

    def values(self, file: File) -> dict[str, Any]:
        """Return what those columns are in the rows of a file."""
        values = self._partitions.get(self._find_partitions).of(file)
        return values | {PATH_COLUMN: str(file)} if self.include_paths else values

    def _list(self) -> tuple[File, ...]:
        return list_files(
            self.paths,
            filesystem=self.filesystem,
            extensions=self.extensions,
            keep=self.partition_filter,
            ignore_missing=self.ignore_missing_paths,
        )

    def _find_partitions(self) -> _Partitions:
        if self.partitioning is None:
            return _Partitions(pa.schema([]))
        if self.partitioning == "hive":
            return _Partitions(_hive_schema(self.files()))
        return _Partitions(self.partitioning.schema, self.partitioning)


@dataclass(frozen=True)
class _Partitions:
    """Which columns folders stand for: ``year=2024/`` for a column ``year``."""

    schema: pa.Schema
    partitioning: Any = None

    def of(self, file: File) -> dict[str, Any]:
        if not self.schema:
            return {}
        if self.partitioning is None:
            texts = _hive_values(file.path)
        else:
            import pyarrow.dataset as pads  # brings pandas along

            whole = isinstance(self.partitioning, pads.HivePartitioning)
            path = file.path if whole else file.path[len(file.root.rstrip("/")) :].lstrip("/")
            try:
                texts = pads.get_partition_keys(self.partitioning.parse(path))
            except pa.ArrowInvalid as error:
                raise DataFileError(
                    f"{file}: its folders are not what partitioning says: {error}"
                ) from error
        return {one.name: _typed(texts.get(one.name), one.type) for one in self.schema}


def check_partitioning(partitioning: Any) -> Any:
    """Return it.

    Raises:
        ConfigurationError: It is neither ``"hive"`` nor None nor one of pyarrow's.
    """
    if partitioning is None or partitioning == "hive":
        return partitioning
    if getattr(partitioning, "type_name", "") == "hive" and not hasattr(partitioning, "schema"):
        return "hive"
    if hasattr(partitioning, "schema") and hasattr(partitioning, "parse"):
        return partitioning
    raise ConfigurationError(
        f"partitioning={partitioning!r}: must be 'hive', None or a "
        "pyarrow.dataset.partitioning(schema) with the columns' types"
    )


def _hive_values(path: str) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in path.split("/")[:-1])
    found = {unquote(key): unquote(value) for key, equals, value in pairs if equals and key}
    return {key: None if value == NULL_PARTITION else value for key, value in found.items()}


def _hive_schema(files: Iterable[File]) -> pa.Schema:
    """Infer types as pyarrow.dataset does: numbers if all values are numbers, else strings."""
    values: dict[str, set[str]] = {}
    for file in files:
        for key, value in _hive_values(file.path).items():
            values.setdefault(key, set()).update(() if value is None else (value,))
    return pa.schema([(key, _type_of(texts)) for key, texts in values.items()])


def _type_of(texts: Iterable[str]) -> pa.DataType:
    known = list(texts)
    if not known or not all(re.fullmatch(r"-?\d{1,18}", text) for text in known):
        return pa.string()
    small = all(-(2**31) <= int(text) < 2**31 for text in known)
    return pa.int32() if small else pa.int64()


def _typed(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    return pa.scalar(value).cast(kind).as_py() if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True, eq=False)
class FileSource(Source):
    """A source that reads files.

    Attributes:
        where: The files.
        on_error: What to do with a file, a row group or a line that cannot be read.
        shuffle: In which order a plan reads the files; blocks are listed as they lie.
        override_num_blocks: About how many blocks to make.
        skips: What was left out.
    """

    can_select: ClassVar[bool] = True
    lists_columns: ClassVar[bool] = True

    kind: str
    where: FileSet
    columns: tuple[str, ...] | None = None
    predicate: pc.Expression | None = None
    on_error: OnError = "raise"
    shuffle: FileShuffleConfig | None = None
    override_num_blocks: int | None = None
    skips: Skips = field(default_factory=Skips, repr=False)

    def describe(self) -> str:
        """Return one line for a plan that prints itself."""
        paths = ", ".join(self.where.paths[:_SHOWN])
        paths += ", ..." if len(self.where.paths) > _SHOWN else ""
        number = len(self.where.files())
        return f"{self.kind} {paths} ({number:,} file{'' if number == 1 else 's'})"

    def input_files(self) -> tuple[str, ...]:
        """Return the paths of the files that are read."""
        return tuple(str(file) for file in self.where.files())

    def warn_of_skips(self) -> None:
        """Log what was left out since the last call: for the end of an iteration."""
        self.skips.warn(self.kind, len(self.where.files()))

    def selected(self, schema: pa.Schema) -> pa.Schema:
        """Return what is left of all columns.

        Raises:
            ColumnError: One is not there.
        """
        if self.columns is None:
            return schema
        for name in self.columns:
            if name not in schema.names:
                raise ColumnError(name, schema.names, self.kind)
        return pa.schema([schema.field(name) for name in self.columns])


def file_set(
    paths: Paths,
    *,
    filesystem: Any,
    extensions: Sequence[str] | None,
    partitioning: Any,
    partition_filter: Callable[[str], bool] | None,
    include_paths: bool,
    ignore_missing_paths: bool,
) -> FileSet:
    """Return the files that a user means; they are not listed yet."""
    return FileSet(
        paths=as_paths(paths),
        filesystem=filesystem,
        extensions=None if extensions is None else _without_dots(extensions),
        partitioning=check_partitioning(partitioning),
        partition_filter=partition_filter,
        include_paths=include_paths,
        ignore_missing_paths=ignore_missing_paths,
    )


def _without_dots(extensions: Sequence[str]) -> tuple[str, ...]:
    several = [extensions] if isinstance(extensions, str) else extensions
    return tuple(name.removeprefix(".") for name in several)


def with_constants(table: pa.Table, schema: pa.Schema, values: Mapping[str, Any]) -> pa.Table:
    """Return a table with the columns of a schema; those it does not have are constants."""
    if table.schema.equals(schema):
        return table
    arrays = [
        table.column(one.name)
        if one.name in table.column_names
        else pa.repeat(pa.scalar(values.get(one.name), one.type), table.num_rows)
        for one in schema
    ]
    if not arrays:
        return table.select([])  # rows without columns still have a number
    return pa.Table.from_arrays(arrays, schema=schema)
