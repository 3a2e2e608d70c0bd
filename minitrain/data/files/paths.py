"""From what a user says about files to a list of them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pyarrow.fs import (
    FileInfo,
    FileSelector,
    FileSystem,
    FileType,
    FSSpecHandler,
    LocalFileSystem,
    PyFileSystem,
)

from minitrain.exceptions import ConfigurationError, DataPathError

__all__ = ["File", "PathLike", "Paths", "as_paths", "list_files", "resolved_path"]

PathLike = str | os.PathLike[str]
Paths = PathLike | Sequence[PathLike]

_LISTED_AT_A_TIME = 16
_SHOWN = 5
_GOOGLE_S = 10
_SCHEMES = {"s3": "s3", "gcs": "gs", "abfs": "abfs", "hdfs": "hdfs"}


@dataclass(frozen=True, slots=True)
class File:
    """A file that was found.

    Attributes:
        path: As its filesystem takes it.
        size_bytes: How large it was.
        changed_ns: When it was written last; 0 where the filesystem does not say.
        root: The folder that was named, or in which wildcards begin.
        filesystem: Where it is.
    """

    path: str
    size_bytes: int
    changed_ns: int
    root: str
    filesystem: FileSystem

    def __reduce__(self) -> tuple[Any, ...]:  # fast: there may be a million of them
        return File, (self.path, self.size_bytes, self.changed_ns, self.root, self.filesystem)

    def __str__(self) -> str:
        return _shown(self.filesystem, self.path)

    @property
    def is_local(self) -> bool:
        """Whether it is on a filesystem of this machine."""
        return isinstance(self.filesystem, LocalFileSystem)


@dataclass(frozen=True, slots=True)
class _Place:
    """One path as a user gave it."""

    text: str
    path: str
    filesystem: FileSystem


def as_paths(paths: Paths) -> tuple[str, ...]:
    """Return what a user gave as several paths.

    Raises:
        ConfigurationError: There is none, or an empty one.
        TypeError: Something is no path.
    """
    is_one = isinstance(paths, str | os.PathLike) or not isinstance(paths, Iterable)
    several: list[Any] = [paths] if is_one else [*paths]  # type: ignore[misc]
    if not several:
        raise ConfigurationError("paths=[]: there must be at least one path")
    for path in several:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"paths: {path!r} is neither a str nor a pathlib.Path")
        if not os.fspath(path):
            raise ConfigurationError("paths='': is empty; '.' is the current folder")
    return tuple(os.fspath(path) for path in several)


def list_files(
    paths: Sequence[str],
    *,
    filesystem: Any = None,
    extensions: Sequence[str] | None = None,
    keep: Callable[[str], bool] | None = None,
    ignore_missing: bool = False,
) -> tuple[File, ...]:
    """Find files, sorted by path.

    In folders, files and folders whose names begin with a dot or an underscore are left out, and
    those with other extensions. A file that is named itself is taken whatever its name is.

    Args:
        paths: Files, folders, patterns with ``*``, ``**``, ``?`` and ``[..]``, URIs.
        filesystem: Where they are, if they are no URIs: pyarrow's or fsspec's.
        extensions: What names in a folder end with, without the dot; None: anything.
        keep: Given a path, whether to keep it.
        ignore_missing: Leave out paths at which there is nothing.

    Raises:
        DataPathError: There is nothing at a path, or no file at any.
        ConfigurationError: A URI cannot be opened, or a pattern is none.
    """
    places = _with_shared_filesystems([_place(text, filesystem) for text in paths])
    search = _Search(extensions, ignore_missing)
    with ThreadPoolExecutor(min(_LISTED_AT_A_TIME, len(places))) as threads:
        lists = list(threads.map(search.files, places))
    files = [file for found in lists for file in found if keep is None or keep(file.path)]
    if not files:
        raise DataPathError(search.explain(places, filtered=keep is not None and any(lists)))
    return tuple(sorted(files, key=lambda file: file.path))


@dataclass(frozen=True)
class _Search:
    extensions: Sequence[str] | None
    ignore_missing: bool

    def files(self, place: _Place) -> list[File]:
        info = place.filesystem.get_file_info(place.path)
        if info.type == FileType.File:
            return [_file(info, _parent(place.path), place.filesystem)]
        if info.type == FileType.Directory:
            return self._in_folder(place, place.path)
        if _has_wildcard(place.path):
            return self._matching(place)
        if self.ignore_missing:
            return []
        raise DataPathError(_nothing_at(place))

    def explain(self, places: Sequence[_Place], *, filtered: bool) -> str:
        """Say why nothing was found where something should be."""
        where = ", ".join(place.text for place in places[:_SHOWN])
        if filtered:
            return f"{where}: partition_filter leaves out every file"
        what = "files"
        if self.extensions is not None:
            what = f"files that end with {' or '.join('.' + name for name in self.extensions)}"
        there = sorted({name for place in places for name in _names_in(place)})
        if not there:
            return f"{where}: there are no {what}; nothing lies there"
        more = f" and {len(there) - _SHOWN:,} more" if len(there) > _SHOWN else ""
        shown = ", ".join(there[:_SHOWN])
        hint = "" if self.extensions is None else " (file_extensions says which to read)"
        return f"{where}: there are no {what}, but {shown}{more}{hint}"

    def _in_folder(self, place: _Place, folder: str) -> list[File]:
        infos = _listed(place.filesystem, folder, recursive=True)
        return [
            _file(info, place.path, place.filesystem)
            for info in infos
            if info.type == FileType.File
            and not _is_hidden(_relative(info.path, folder))
            and self._has_extension(info.path)
        ]

    def _has_extension(self, path: str) -> bool:
        if self.extensions is None:
            return True
        return path.lower().endswith(tuple(f".{name.lower()}" for name in self.extensions))

    def _matching(self, place: _Place) -> list[File]:
        root, parts = _split_pattern(place.path)
        infos = _expand(place.filesystem, root, parts)
        files: dict[str, File] = {}
        for info in infos:
            if info.type == FileType.Directory:
                inside = self._in_folder(place, info.path)
                files |= {file.path: _with_root(file, root) for file in inside}
            else:
                files[info.path] = _file(info, root, place.filesystem)
        if not files and not self.ignore_missing:
            raise DataPathError(f"{place.text}: no file matches; {_nearest(place, root)}")
        return list(files.values())


def _file(info: FileInfo, root: str, filesystem: FileSystem) -> File:
    return File(info.path, info.size or 0, info.mtime_ns or 0, root, filesystem)


def _with_root(file: File, root: str) -> File:
    return File(file.path, file.size_bytes, file.changed_ns, root, file.filesystem)


def _listed(filesystem: FileSystem, folder: str, *, recursive: bool = False) -> list[FileInfo]:
    deep = recursive or filesystem.type_name == "gcs"
    selector = FileSelector(folder, allow_not_found=True, recursive=deep)
    infos: list[FileInfo] = filesystem.get_file_info(selector)
    return infos if recursive or not deep else _children_of(folder, infos)


def _children_of(folder: str, infos: Iterable[FileInfo]) -> list[FileInfo]:
    """Return what lies directly in a folder: Google's has no entry for a folder in it."""
    found: dict[str, FileInfo] = {}
    for info in infos:
        name, slash, _ = _relative(info.path, folder).partition("/")
        path = f"{folder.rstrip('/')}/{name}"
        found.setdefault(path, FileInfo(path, FileType.Directory) if slash else info)
    return list(found.values())


def _relative(path: str, folder: str) -> str:
    return path[len(folder.rstrip("/")) + 1 :] if folder else path


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or ("/" if path.startswith("/") else "")


def _is_hidden(relative: str) -> bool:
    """Whether writers and systems use such a name for their own; ``_a=1`` is a partition."""
    parts = relative.split("/")
    return any(part.startswith((".", "_")) and "=" not in part for part in parts)


# Patterns.


def _has_wildcard(path: str) -> bool:
    return any(character in path for character in "*?[")


def _split_pattern(path: str) -> tuple[str, list[str]]:
    """Return the folder before the first wildcard, and what comes after it."""
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if _has_wildcard(part))
    root = "/".join(parts[:first])
    return root or ("/" if path.startswith("/") else ""), parts[first:]


def _expand(filesystem: FileSystem, folder: str, parts: list[str]) -> Iterator[FileInfo]:
    """Yield what matches, listing no folder that cannot hold a match."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _anywhere(filesystem, folder, rest)
        return
    for info in _children(filesystem, folder, part):
        if not rest:
            yield info
        elif info.type == FileType.Directory:
            yield from _expand(filesystem, info.path, rest)


def _anywhere(filesystem: FileSystem, folder: str, rest: list[str]) -> Iterator[FileInfo]:
    pattern = _compiled("/".join(rest or ["**"]))
    for info in _listed(filesystem, folder, recursive=True):
        relative = _relative(info.path, folder)
        is_wanted = info.type == FileType.File and not _is_hidden(relative)
        if is_wanted and any(map(pattern.fullmatch, _tails(relative))):
            yield info


def _children(filesystem: FileSystem, folder: str, part: str) -> list[FileInfo]:
    if not _has_wildcard(part):
        info = filesystem.get_file_info(f"{folder.rstrip('/')}/{part}")
        return [] if info.type == FileType.NotFound else [info]
    pattern = _compiled(part)
    infos = _listed(filesystem, folder)
    return [info for info in infos if _matches(pattern, part, info.base_name)]


def _matches(pattern: re.Pattern[str], part: str, name: str) -> bool:
    hidden = _is_hidden(name) and not part.startswith(name[0])
    return not hidden and pattern.fullmatch(name) is not None


def _tails(relative: str) -> list[str]:
    parts = relative.split("/")
    return ["/".join(parts[index:]) for index in range(len(parts))]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile("/".join(map(_regex, pattern.split("/"))), re.DOTALL)
    except re.error as error:
        raise ConfigurationError(f"paths: {pattern!r} is no pattern: {error.msg}") from error


def _regex(part: str) -> str:
    """Translate one part of a pattern; no wildcard matches a slash."""
    if part == "**":
        return ".*"
    tokens = re.findall(r"\[!?\]?[^\]]*\]|.", part, re.DOTALL)
    return "".join(map(_translated, tokens))


def _translated(piece: str) -> str:
    if piece == "*":
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if len(piece) > 1:
        inside = piece[1:-1].replace("\\", r"\\").replace("[", r"\[")
        return f"[^/{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
    return re.escape(piece)


# What is said when there is nothing.


def _nothing_at(place: _Place) -> str:
    return f"{place.text}: there is no such file or folder; {_nearest(place, place.path)}"


def _nearest(place: _Place, path: str) -> str:
    """Name the nearest folder that exists, and names in it that are like the one that is not."""
    path = path.rstrip("/")
    wanted = ""
    while path and not _is_folder(place.filesystem, path):
        path, wanted = _parent(path).rstrip("/"), path.rpartition("/")[2]
    if not path and not isinstance(place.filesystem, LocalFileSystem):
        return "nor is any part of it"
    folder = path or "/"
    names = [info.base_name for info in _listed(place.filesystem, folder)]
    near = difflib.get_close_matches(wanted, names, n=3)
    shown = _shown(place.filesystem, folder)
    if near:
        return f"{shown} has {' and '.join(map(repr, near))}"
    some = ", ".join(map(repr, sorted(names)[:_SHOWN]))
    return f"{shown} exists and has {some or 'nothing in it'}"


def _is_folder(filesystem: FileSystem, path: str) -> bool:
    try:
        return bool(filesystem.get_file_info(path).type == FileType.Directory)
    except OSError:
        return False  # a bucket that may not be looked at


def _names_in(place: _Place) -> Iterator[str]:
    folder = _split_pattern(place.path)[0] if _has_wildcard(place.path) else place.path
    for info in _listed(place.filesystem, folder, recursive=True):
        if info.type == FileType.File:
            yield _relative(info.path, folder)


def _shown(filesystem: FileSystem, path: str) -> str:
    scheme = _SCHEMES.get(filesystem.type_name)
    return f"{scheme}://{path}" if scheme else path


# Filesystems.


def resolved_path(path: PathLike, filesystem: Any = None) -> tuple[FileSystem, str]:
    """Return the filesystem of a path or URI, and the path there.

    Raises:
        ConfigurationError: A URI cannot be opened.
    """
    place = _place(as_paths(path)[0], filesystem)
    return place.filesystem, place.path


def _place(text: str, filesystem: Any) -> _Place:
    if filesystem is not None:
        return _Place(text, _without_scheme(text).rstrip("/"), _as_arrow(filesystem))
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _Place(text, _absolute(text), _local())
    if scheme in {"file", "local"}:
        return _Place(text, _absolute(unquote(urlsplit(text).path)), _local())
    try:
        filesystem, path = _from_uri(text, scheme, rest)
    except (ValueError, OSError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"paths={text!r}: cannot be opened: {reason}") from error
    return _Place(text, path.rstrip("/"), filesystem)


def _with_shared_filesystems(places: Iterable[_Place]) -> list[_Place]:
    """Let equal filesystems be one object, which is pickled once."""
    known: list[FileSystem] = []
    shared = []
    for place in places:
        mine = place.filesystem
        same = next((one for one in known if one is mine or one.equals(mine)), None)
        if same is None:
            known.append(mine)
        shared.append(_Place(place.text, place.path, same or mine))
    return shared


def _local() -> FileSystem:
    return LocalFileSystem()


def _absolute(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - keeps symlinks


def _without_scheme(text: str) -> str:
    return text.partition("://")[2] or text


def _as_arrow(given: Any) -> FileSystem:
    if isinstance(given, FileSystem):
        return given
    if any(cls.__module__.startswith("fsspec.") for cls in type(given).__mro__):
        return PyFileSystem(FSSpecHandler(given))
    allowed = "must be a pyarrow.fs.FileSystem or an fsspec filesystem"
    raise ConfigurationError(f"filesystem={given!r}: {allowed}")


def _from_uri(text: str, scheme: str, rest: str) -> tuple[FileSystem, str]:
    """Open the filesystem with the bucket's name alone: keys and patterns are no valid URIs."""
    path, question, query = rest.partition("?")
    if question and "=" not in query:  # a wildcard
        path, question, query = rest, "", ""
    bucket, _, key = path.partition("/")
    if scheme == "s3" and bucket.startswith("anonymous@"):
        bucket = bucket.removeprefix("anonymous@")
        return _anonymous_s3(bucket, query), f"{bucket}/{key}"
    if scheme in {"gs", "gcs"} and "retry_limit_seconds=" not in query:
        # Google's client would try for 15 minutes, in which nobody is told.
        question, query = "?", f"{query}{'&' if query else ''}retry_limit_seconds={_GOOGLE_S}"
    try:
        filesystem, base = FileSystem.from_uri(f"{scheme}://{bucket}{question}{query}")
    except (NotImplementedError, ValueError) as error:
        unknown = isinstance(error, NotImplementedError) or "Unrecognized" in str(error)
        if not unknown:
            raise
        from fsspec.core import url_to_fs

        found, path = url_to_fs(text)
        return _as_arrow(found), path
    return filesystem, f"{base.rstrip('/')}/{key}"


def _anonymous_s3(bucket: str, query: str) -> FileSystem:
    from urllib.parse import parse_qsl

    from pyarrow.fs import S3FileSystem, resolve_s3_region

    options = dict(parse_qsl(query))
    if not options.keys() & {"region", "endpoint_override"}:
        options["region"] = resolve_s3_region(bucket)
    return S3FileSystem(anonymous=True, **options)
