"""From what a user says about storage to a place on a disk."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from minitrain._storage.arrow import ArrowDisk
from minitrain._storage.disk import Disk, LocalDisk
from minitrain._storage.run_storage import RunStorage
from minitrain.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["Location", "resolve"]

_PATH = "RunConfig(storage_path)"
_FILESYSTEM = "RunConfig(storage_filesystem)"
_GOOGLE_S = 5


@dataclass(frozen=True)
class Location:
    """The directory that holds the directories of runs.

    Attributes:
        text: As the user spelled it, for messages.
        root: Its path.
        filesystem: Where that is, if not on this machine's own.
    """

    text: str
    root: str
    filesystem: FileSystem | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's own filesystem."""
        return self.filesystem is None

    def disk_for(self, name: str) -> Disk:
        """Return the disk for the directory of a run; nothing is made yet."""
        return self._disk(f"{self.root.rstrip('/')}/{name}")

    def run(self, name: str) -> RunStorage:
        """Return the storage of a run."""
        return RunStorage(self.disk_for(name))

    def itself(self) -> RunStorage:
        """Return the storage of a run whose directory this is."""
        return RunStorage(self._disk(self.root))

    def probe(self) -> None:
        """Write, read and delete a small file, to find out now what would fail later.

        Raises:
            ConfigurationError: One of the three fails.
        """
        disk = self._disk(self.root)
        name, data = f".minitrain-probe-{uuid.uuid4().hex[:12]}", b"minitrain"
        try:
            disk.make_directory("")
            disk.write(name, data)
            found = disk.read(name)
            disk.remove(name)
        except Exception as error:
            reason = _first_line(error)
            raise _refuse(_PATH, self.text, f"cannot be used: {reason}") from error
        if found != data:
            raise _refuse(_PATH, self.text, "does not return what was written to it")

    def _disk(self, root: str) -> Disk:
        return LocalDisk(root) if self.filesystem is None else ArrowDisk(self.filesystem, root)


def resolve(
    storage_path: str | os.PathLike[str],
    storage_filesystem: Any = None,
    *,
    one_process: bool = False,
) -> Location:
    """Return the place that a user means.

    Args:
        storage_path: A local path, a URI, or a path in ``storage_filesystem``.
        storage_filesystem: A ``pyarrow.fs.FileSystem`` or an fsspec filesystem.
        one_process: Whether workers share the driver's memory.

    Raises:
        ConfigurationError: There is no such place.
    """
    text = os.fspath(storage_path)
    if not text:
        raise _refuse(_PATH, text, "must be a path or a URI such as s3://bucket/folder")
    if storage_filesystem is not None:
        return _in_filesystem(text, storage_filesystem, one_process=one_process)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _local(text, text)
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in {"", "localhost"}:
            raise _refuse(_PATH, text, "must have three slashes, file:///folder")
        return _local(text, unquote(parts.path))
    if not rest.strip("/"):
        raise _refuse(_PATH, text, f"must name a bucket or folder, {scheme}://bucket/folder")
    filesystem, path = _from_uri(text)
    return _remote(_PATH, text, filesystem, path, one_process=one_process)


def _local(text: str, path: str) -> Location:
    return Location(text, os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - keeps symlinks


def _in_filesystem(text: str, given: Any, *, one_process: bool) -> Location:
    if "://" in text:
        allowed = "must be a path without a scheme, because storage_filesystem is given"
        raise _refuse(_PATH, text, allowed)
    if getattr(given, "type_name", None) == "local":
        return _local(text, text)
    return _remote(_FILESYSTEM, text, _as_arrow(given), text, one_process=one_process)


def _as_arrow(given: Any) -> FileSystem:
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    if isinstance(given, FileSystem):
        return given
    if any(cls.__module__.startswith("fsspec.") for cls in type(given).__mro__):
        return PyFileSystem(FSSpecHandler(given))
    allowed = "must be a pyarrow.fs.FileSystem or an fsspec filesystem"
    raise _refuse(_FILESYSTEM, given, allowed)


def _from_uri(text: str) -> tuple[FileSystem, str]:
    """Open what a URI names: with pyarrow, and with fsspec what that does not know."""
    from pyarrow.fs import FileSystem

    try:
        filesystem, path = FileSystem.from_uri(_impatient(text))
    except NotImplementedError:
        pass  # pyarrow was built without it
    except (ValueError, OSError) as error:
        if "Unrecognized filesystem type" not in str(error):
            raise _refuse(_PATH, text, f"cannot be opened: {_first_line(error)}") from error
    else:
        return filesystem, path
    return _from_fsspec(text)


def _impatient(uri: str) -> str:
    """Return a URI whose filesystem does not itself try again for long.

    Google's client would for 15 minutes, in which nobody is told and Ctrl-C does nothing; trying
    again is done here (``MINITRAIN_RETRY_S``).
    """
    if not uri.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={_GOOGLE_S}"


def _from_fsspec(text: str) -> tuple[FileSystem, str]:
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(text)
    except ImportError as error:
        raise _refuse(_PATH, text, f"needs another package: {_first_line(error)}") from error
    except ValueError as error:
        allowed = "must be a local path or a URI that pyarrow.fs or fsspec knows"
        raise _refuse(_PATH, text, f"{allowed}: {_first_line(error)}") from error
    except Exception as error:
        raise _refuse(_PATH, text, f"cannot be opened: {_first_line(error)}") from error
    return _as_arrow(filesystem), path


def _remote(
    field: str, text: str, filesystem: FileSystem, path: str, *, one_process: bool
) -> Location:
    if not one_process and _is_memory(filesystem):
        allowed = "workers are other processes and would not see it; only for num_workers=0"
        raise _refuse(field, text if field == _PATH else filesystem, allowed)
    return Location(text, path.rstrip("/"), filesystem)


def _is_memory(filesystem: FileSystem) -> bool:
    while filesystem.type_name == "subtree":
        filesystem = filesystem.base_fs
    kind: str = filesystem.type_name
    return kind == "mock" or (kind.startswith("py::fsspec") and "memory" in kind)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _refuse(where: str, value: Any, allowed: str) -> ConfigurationError:
    return ConfigurationError(f"{where}={value!r}: {allowed}")
