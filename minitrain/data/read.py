"""Datasets of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minitrain.data.dataset import from_source
from minitrain.data.files.binary_formats import (
    BytesFormat,
    FilesSource,
    ImageFormat,
    check_mode,
)
from minitrain.data.files.line_formats import CsvFormat, JsonFormat, TextFormat
from minitrain.data.files.numpy_format import NumpySource
from minitrain.data.files.parquet import EXTENSIONS, ParquetSource
from minitrain.data.files.paths import Paths
from minitrain.data.files.source import (
    PATH_COLUMN,
    FileSet,
    FileShuffleConfig,
    OnError,
    Shuffle,
    file_set,
)
from minitrain.data.files.text_formats import LinesSource
from minitrain.data.plans.functions import check_count
from minitrain.exceptions import ConfigurationError

if TYPE_CHECKING:
    from minitrain.data.dataset import Dataset

__all__ = [
    "read_binary_files",
    "read_csv",
    "read_images",
    "read_json",
    "read_numpy",
    "read_parquet",
    "read_text",
]

_COMPRESSED = ("gz", "bz2", "zst", "lz4", "br")
_IMAGES = ("png", "jpg", "jpeg", "tif", "tiff", "bmp", "gif", "webp")
_CSV = ("csv", "tsv")
_JSON = ("json", "jsonl", "ndjson")


def _with_compressed(names: Sequence[str]) -> tuple[str, ...]:
    return (*names, *(f"{name}.{more}" for name in names for more in _COMPRESSED))


def read_parquet(
    paths: Paths,
    *,
    columns: Sequence[str] | None = None,
    tensor_column_schema: Mapping[str, tuple[Any, tuple[int, ...]]] | None = None,
    filesystem: Any = None,
    partitioning: Any = "hive",
    partition_filter: Callable[[str], bool] | None = None,
    include_paths: bool = False,
    ignore_missing_paths: bool = False,
    shuffle: Shuffle = None,
    file_extensions: Sequence[str] | None = EXTENSIONS,
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    on_error: OnError = "raise",
) -> Dataset:
    """Return a dataset of Parquet files.

    A block is a row group; small ones that lie next to each other are read together. Steps that
    follow are pushed down: columns that nobody asks for are not read, nor are row groups of which
    the statistics say that a filter keeps nothing.

    Args:
        paths: Files, folders, patterns such as ``data/*/part-??.parquet``, URIs such as
            ``s3://bucket/folder``; one or a list.
        columns: Which columns to read; None: all.
        tensor_column_schema: Columns of bytes that hold tensors: their dtypes and shapes.
        filesystem: Where the paths are, if they are no URIs: a ``pyarrow.fs.FileSystem`` or one of
            fsspec.
        partitioning: ``"hive"`` makes a column ``year`` of a folder ``year=2024``; None does not;
            ``pyarrow.dataset.partitioning(schema)`` says what folders stand for.
        partition_filter: Given a file's path, whether to read it.
        include_paths: Add a column ``path``.
        ignore_missing_paths: Leave out paths at which there is nothing.
        shuffle: ``"files"`` or a :class:`FileShuffleConfig`: read them in another order each time.
        file_extensions: What names of files in a folder must end with; None: anything. A file that
            is named itself is read in any case.
        override_num_blocks: About how many blocks to make, where a format can be cut so.
        concurrency: Accepted as in ray.data; ``DataContext.read_threads`` says how much is read at
            a time.
        on_error: ``"raise"``, or ``"skip"`` what cannot be read, which is a
            file or a row group and is counted; row groups are then decoded once more, to see
            that they are sound.

    Raises:
        DataPathError: There is nothing to read; found out when the dataset is first used.
        ConfigurationError: An argument is wrong.
    """
    del concurrency
    where = _files(
        paths,
        filesystem,
        partitioning,
        partition_filter,
        include_paths,
        ignore_missing_paths,
        file_extensions,
    )
    return from_source(
        ParquetSource(
            columns=_columns(columns, include_paths=include_paths),
            tensors=dict(tensor_column_schema or {}),
            where=where,
            on_error=_check(on_error),
            shuffle=_shuffle(shuffle),
            override_num_blocks=_blocks(override_num_blocks),
        )
    )


def read_csv(
    paths: Paths,
    *,
    filesystem: Any = None,
    partitioning: Any = "hive",
    partition_filter: Callable[[str], bool] | None = None,
    include_paths: bool = False,
    ignore_missing_paths: bool = False,
    shuffle: Shuffle = None,
    file_extensions: Sequence[str] | None = _with_compressed(_CSV),
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    on_error: OnError = "raise",
    **arrow_csv_args: Any,
) -> Dataset:
    """Return a dataset of CSV files.

    Columns and types are those of the first lines of the first file; all others must have them.
    Files are read in ranges of lines, but for compressed ones and those with
    ``newlines_in_values``, which are a block each.

    Args:
        paths: Files, folders, patterns such as ``data/*/part-??.csv``, URIs such as
            ``s3://bucket/folder``; one or a list.
        filesystem: As for :func:`read_parquet`, like all that follow.
        partitioning: Columns from names of folders.
        partition_filter: Given a file's path, whether to read it.
        include_paths: Add a column ``path``.
        ignore_missing_paths: Leave out paths at which there is nothing.
        shuffle: In which order to read files.
        file_extensions: What names of files in a folder must end with.
        override_num_blocks: About how many blocks to make.
        concurrency: Accepted as in ray.data.
        on_error: ``"raise"``, or ``"skip"`` what cannot be read, which is
            a line, a file that is compressed, or one with other columns, and is counted.
        **arrow_csv_args: ``read_options``, ``parse_options`` and ``convert_options``, as
            :func:`pyarrow.csv.read_csv` takes them.

    Raises:
        DataPathError: There is nothing to read; found out when the dataset is first used.
        ConfigurationError: An argument is wrong.
    """
    del concurrency
    where = _files(
        paths,
        filesystem,
        partitioning,
        partition_filter,
        include_paths,
        ignore_missing_paths,
        file_extensions,
    )
    return from_source(
        LinesSource(
            kind="read_csv",
            format=CsvFormat(
                **_known(
                    "read_csv",
                    arrow_csv_args,
                    read_options="read",
                    parse_options="parsing",
                    convert_options="convert",
                )
            ),
            where=where,
            on_error=_check(on_error),
            shuffle=_shuffle(shuffle),
            override_num_blocks=_blocks(override_num_blocks),
        )
    )


def read_json(
    paths: Paths,
    *,
    lines: bool = False,
    filesystem: Any = None,
    partitioning: Any = "hive",
    partition_filter: Callable[[str], bool] | None = None,
    include_paths: bool = False,
    ignore_missing_paths: bool = False,
    shuffle: Shuffle = None,
    file_extensions: Sequence[str] | None = _with_compressed(_JSON),
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    on_error: OnError = "raise",
    **arrow_json_args: Any,
) -> Dataset:
    """Return a dataset of JSON files: an object in each line, or an array of objects in each file.

    Columns and types are those of the first lines of the first file; all others must have them.

    Args:
        paths: Files, folders, patterns such as ``data/*/part-??.json``, URIs such as
            ``s3://bucket/folder``; one or a list.
        lines: Whether it must be an object in each line; if not, each file's beginning decides.
        filesystem: As for :func:`read_parquet`, like all that follow.
        partitioning: Columns from names of folders.
        partition_filter: Given a file's path, whether to read it.
        include_paths: Add a column ``path``.
        ignore_missing_paths: Leave out paths at which there is nothing.
        shuffle: In which order to read files.
        file_extensions: What names of files in a folder must end with.
        override_num_blocks: About how many blocks to make.
        concurrency: Accepted as in ray.data.
        on_error: ``"raise"``, or ``"skip"`` what cannot be read, which is
            a line, or a file that is not read by lines, and is counted.
        **arrow_json_args: ``parse_options``, as :func:`pyarrow.json.read_json` takes it.

    Raises:
        DataPathError: There is nothing to read; found out when the dataset is first used.
        ConfigurationError: An argument is wrong.
    """
    del concurrency
    where = _files(
        paths,
        filesystem,
        partitioning,
        partition_filter,
        include_paths,
        ignore_missing_paths,
        file_extensions,
    )
    return from_source(
        LinesSource(
            kind="read_json",
            format=JsonFormat(
                lines=lines, **_known("read_json", arrow_json_args, parse_options="parsing")
            ),
            where=where,
            on_error=_check(on_error),
            shuffle=_shuffle(shuffle),
            override_num_blocks=_blocks(override_num_blocks),
        )
    )


def read_text(
    paths: Paths,
    *,
    encoding: str = "utf-8",
    drop_empty_lines: bool = True,
    filesystem: Any = None,
    partitioning: Any = "hive",
    partition_filter: Callable[[str], bool] | None = None,
    include_paths: bool = False,
    ignore_missing_paths: bool = False,
    shuffle: Shuffle = None,
    file_extensions: Sequence[str] | None = None,
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    on_error: OnError = "raise",
) -> Dataset:
    """Return a dataset of the lines of text files, in a column ``text``.

    Args:
        paths: Files, folders, patterns such as ``data/*/part-??.txt``, URIs such as
            ``s3://bucket/folder``; one or a list.
        encoding: What the files are written in.
        drop_empty_lines: Leave out lines that have nothing but spaces.
        filesystem: As for :func:`read_parquet`, like all that follow.
        partitioning: Columns from names of folders.
        partition_filter: Given a file's path, whether to read it.
        include_paths: Add a column ``path``.
        ignore_missing_paths: Leave out paths at which there is nothing.
        shuffle: In which order to read files.
        file_extensions: What names of files in a folder must end with.
        override_num_blocks: About how many blocks to make.
        concurrency: Accepted as in ray.data.
        on_error: ``"raise"``, or ``"skip"`` what cannot be read, which is
            a line, and is counted.

    Raises:
        DataPathError: There is nothing to read; found out when the dataset is first used.
        ConfigurationError: An argument is wrong.
    """
    del concurrency
    where = _files(
        paths,
        filesystem,
        partitioning,
        partition_filter,
        include_paths,
        ignore_missing_paths,
        file_extensions,
    )
    return from_source(
        LinesSource(
            kind="read_text",
            format=TextFormat(encoding=encoding, drop_empty_lines=drop_empty_lines),
            where=where,
            on_error=_check(on_error),
            shuffle=_shuffle(shuffle),
            override_num_blocks=_blocks(override_num_blocks),
        )
    )


def read_images(
    paths: Paths,
    *,
    size: tuple[int, int] | None = None,
    mode: str | None = None,
    filesystem: Any = None,
    partitioning: Any = "hive",
    partition_filter: Callable[[str], bool] | None = None,
    include_paths: bool = False,
    ignore_missing_paths: bool = False,
    shuffle: Shuffle = None,
    file_extensions: Sequence[str] | None = _IMAGES,
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    on_error: OnError = "raise",
) -> Dataset:
    """Return a dataset of images, in a column ``image`` of height, width and channels.

    If the first images have the same shape, all must have it; if they do not, or ``size`` and
    ``mode`` leave it open, each keeps its own.

    Args:
        paths: Files, folders, patterns such as ``data/*/part-??.png``, URIs such as
            ``s3://bucket/folder``; one or a list.
        size: The height and width to give all of them.
        mode: What Pillow calls the kind of pixels to give all of them, such as ``"RGB"``.
        filesystem: As for :func:`read_parquet`, like all that follow.
        partitioning: Columns from names of folders.
        partition_filter: Given a file's path, whether to read it.
        include_paths: Add a column ``path``.
        ignore_missing_paths: Leave out paths at which there is nothing.
        shuffle: In which order to read files.
        file_extensions: What names of files in a folder must end with.
        override_num_blocks: About how many blocks to make.
        concurrency: Accepted as in ray.data.
        on_error: ``"raise"``, or ``"skip"`` what cannot be read, which
            is a file, and is counted.

    Raises:
        DataPathError: There is nothing to read; found out when the dataset is first used.
        ConfigurationError: An argument is wrong.
    """
    del concurrency
    where = _files(
        paths,
        filesystem,
        partitioning,
        partition_filter,
        include_paths,
        ignore_missing_paths,
        file_extensions,
    )
    return from_source(
        FilesSource(
            kind="read_images",
            format=ImageFormat(_size(size), check_mode(mode)),
            where=where,
            on_error=_check(on_error),
            shuffle=_shuffle(shuffle),
            override_num_blocks=_blocks(override_num_blocks),
        )
    )


def read_binary_files(
    paths: Paths,
    *,
    filesystem: Any = None,
    partitioning: Any = "hive",
    partition_filter: Callable[[str], bool] | None = None,
    include_paths: bool = False,
    ignore_missing_paths: bool = False,
    shuffle: Shuffle = None,
    file_extensions: Sequence[str] | None = None,
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    on_error: OnError = "raise",
) -> Dataset:
    """Return a dataset of files as they are, in a column ``bytes``.

    Args:
        paths: Files, folders, patterns such as ``data/*/part-??.bin``, URIs such as
            ``s3://bucket/folder``; one or a list.
        filesystem: As for :func:`read_parquet`, like all that follow.
        partitioning: Columns from names of folders.
        partition_filter: Given a file's path, whether to read it.
        include_paths: Add a column ``path``.
        ignore_missing_paths: Leave out paths at which there is nothing.
        shuffle: In which order to read files.
        file_extensions: What names of files in a folder must end with.
        override_num_blocks: About how many blocks to make.
        concurrency: Accepted as in ray.data.
        on_error: ``"raise"``, or ``"skip"`` what cannot be read, which
            is a file, and is counted.

    Raises:
        DataPathError: There is nothing to read; found out when the dataset is first used.
        ConfigurationError: An argument is wrong.
    """
    del concurrency
    where = _files(
        paths,
        filesystem,
        partitioning,
        partition_filter,
        include_paths,
        ignore_missing_paths,
        file_extensions,
    )
    return from_source(
        FilesSource(
            kind="read_binary_files",
            format=BytesFormat(),
            where=where,
            on_error=_check(on_error),
            shuffle=_shuffle(shuffle),
            override_num_blocks=_blocks(override_num_blocks),
        )
    )


def read_numpy(
    paths: Paths,
    *,
    allow_pickle: bool = False,
    filesystem: Any = None,
    partitioning: Any = "hive",
    partition_filter: Callable[[str], bool] | None = None,
    include_paths: bool = False,
    ignore_missing_paths: bool = False,
    shuffle: Shuffle = None,
    file_extensions: Sequence[str] | None = ("npy",),
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    on_error: OnError = "raise",
) -> Dataset:
    """Return a dataset of files of ``numpy.save``: rows are the first axis, in a column ``data``.

    Args:
        paths: Files, folders, patterns such as ``data/*/part-??.npy``, URIs such as
            ``s3://bucket/folder``; one or a list.
        allow_pickle: Whether to read arrays of objects, which can run any code.
        filesystem: As for :func:`read_parquet`, like all that follow.
        partitioning: Columns from names of folders.
        partition_filter: Given a file's path, whether to read it.
        include_paths: Add a column ``path``.
        ignore_missing_paths: Leave out paths at which there is nothing.
        shuffle: In which order to read files.
        file_extensions: What names of files in a folder must end with.
        override_num_blocks: About how many blocks to make.
        concurrency: Accepted as in ray.data.
        on_error: ``"raise"``, or ``"skip"`` what cannot be read, which
            is a file, and is counted.

    Raises:
        DataPathError: There is nothing to read; found out when the dataset is first used.
        ConfigurationError: An argument is wrong.
    """
    del concurrency
    where = _files(
        paths,
        filesystem,
        partitioning,
        partition_filter,
        include_paths,
        ignore_missing_paths,
        file_extensions,
    )
    return from_source(
        NumpySource(
            allow_pickle=allow_pickle,
            where=where,
            on_error=_check(on_error),
            shuffle=_shuffle(shuffle),
            override_num_blocks=_blocks(override_num_blocks),
        )
    )


def _files(  # noqa: PLR0917 - what all readers accept
    paths: Paths,
    filesystem: Any,
    partitioning: Any,
    partition_filter: Callable[[str], bool] | None,
    include_paths: bool,
    ignore_missing_paths: bool,
    extensions: Sequence[str] | None,
) -> FileSet:
    return file_set(
        paths,
        filesystem=filesystem,
        extensions=extensions,
        partitioning=partitioning,
        partition_filter=partition_filter,
        include_paths=include_paths,
        ignore_missing_paths=ignore_missing_paths,
    )


def _check(on_error: OnError) -> OnError:
    if on_error not in {"raise", "skip"}:
        raise ConfigurationError(f"on_error={on_error!r}: must be 'raise' or 'skip'")
    return on_error


def _columns(columns: Sequence[str] | None, *, include_paths: bool) -> tuple[str, ...] | None:
    if isinstance(columns, str):
        raise ConfigurationError(f"columns={columns!r}: must be a list of names")
    if columns is None:
        return None
    paths_too = (PATH_COLUMN,) if include_paths and PATH_COLUMN not in columns else ()
    if not (*columns, *paths_too):
        raise ConfigurationError("read_parquet(columns=[]): name at least one column")
    return (*columns, *paths_too)


def _shuffle(shuffle: Shuffle) -> FileShuffleConfig | None:
    if shuffle is None or isinstance(shuffle, FileShuffleConfig):
        return shuffle
    if shuffle == "files":
        return FileShuffleConfig()
    raise ConfigurationError(f"shuffle={shuffle!r}: must be None, 'files' or a FileShuffleConfig")


def _blocks(number: int | None) -> int | None:
    return None if number is None else check_count("override_num_blocks", number)


def _size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    try:
        height, width = size
        return check_count("height", height), check_count("width", width)
    except (TypeError, ValueError):  # no pair, or not one of sizes
        raise ConfigurationError(f"size={size!r}: must be (height, width)") from None


def _known(function: str, given: Mapping[str, Any], **names: str) -> dict[str, Any]:
    unknown = [name for name in given if name not in names]
    if unknown:
        raise TypeError(
            f"{function}() got an unexpected argument {unknown[0]!r}; it takes {', '.join(names)}"
        )
    return {names[name]: value for name, value in given.items() if value is not None}
