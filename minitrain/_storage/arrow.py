"""A directory on any ``pyarrow.fs`` filesystem: an object store, HDFS, whatever fsspec reaches."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from minitrain import _env
from minitrain._storage.disk import FileEntry
from minitrain._storage.retry import Retry

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileInfo, FileSystem

__all__ = ["ArrowDisk"]

T = TypeVar("T")

_PIECE_BYTES = 16 << 20
"""At least what object stores take as one part, so that parts are sent as they are read."""


def _default_retry() -> Retry:
    return Retry(_env.seconds("MINITRAIN_RETRY_S"))


@dataclass(frozen=True)
class ArrowDisk:
    """A directory on a ``pyarrow.fs`` filesystem.

    What fails and may pass is tried again. Directories need not be made or kept: object stores
    have none.

    Attributes:
        filesystem: Where it is.
        root: Its path there.
        retry: Tries again.
    """

    filesystem: FileSystem
    root: str
    retry: Retry = field(default_factory=_default_retry)
    is_local = False
    num_parallel = 8

    def scan(self, path: str = "") -> dict[str, bool]:
        """Return every name in a directory, and whether it is a directory; none if there is none.

        Args:
            path: The directory.
        """
        if not _lists_directories(self.filesystem):
            found: dict[str, bool] = {}
            for file in self.walk(path):
                name, is_below, _ = file.partition("/")
                found[name] = bool(is_below)
            return found
        return {info.base_name: not info.is_file for info in self._infos(path, recursive=False)}

    def walk(self, path: str) -> dict[str, int]:
        """Return the path, relative to ``path``, and size of every file below a directory."""
        start = len(self._path(path).strip("/")) + 1
        infos = self._infos(path, recursive=True)
        return {info.path.strip("/")[start:]: int(info.size) for info in infos if info.is_file}

    def _infos(self, path: str, *, recursive: bool) -> list[FileInfo]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path(path), allow_not_found=True, recursive=recursive)
        return self._retry(lambda: list(self.filesystem.get_file_info(selector)), path)

    def read(self, path: str) -> bytes:
        """Return what a file holds."""

        def read() -> bytes:
            with self.filesystem.open_input_stream(self._path(path), compression=None) as stream:
                return bytes(stream.read())

        return self._retry(read, path)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file by a small one, as one object."""
        self._retry(lambda: self._write(path, iter([data])), path)

    def mark(self, path: str) -> None:
        """Make an empty file."""
        self.write(path, b"")

    def put(self, source: Path, path: str, *, move: bool = False) -> FileEntry:  # noqa: ARG002
        """Upload a file, and compute its checksum meanwhile; nothing can be renamed to here."""

        def upload() -> FileEntry:
            size = crc32 = 0

            def pieces() -> Iterable[bytes]:
                nonlocal size, crc32
                with source.open("rb", buffering=0) as reader:
                    while piece := reader.read(_PIECE_BYTES):
                        yield piece  # is sent while its checksum is computed
                        size += len(piece)
                        crc32 = zlib.crc32(piece, crc32)

            try:
                self._write(path, pieces())
            except BaseException:
                # Closing a stream publishes also a file that is cut short.
                with suppress(Exception):
                    self.filesystem.delete_file(self._path(path))
                raise
            return FileEntry(path, size, crc32)

        return self._retry(upload, path)

    def _write(self, path: str, pieces: Iterable[bytes]) -> None:
        with self._open(path) as stream:
            for piece in pieces:
                stream.write(piece)

    def _open(self, path: str) -> NativeFile:
        whole = self._path(path)
        try:
            return self.filesystem.open_output_stream(whole, compression=None)
        except FileNotFoundError:  # on what does have directories
            self.filesystem.create_dir(whole.rpartition("/")[0], recursive=True)
            return self.filesystem.open_output_stream(whole, compression=None)

    def measure(self, path: str) -> FileEntry:
        """Read a file through and return what was found."""

        def measure() -> FileEntry:
            size = crc32 = 0
            with self.filesystem.open_input_stream(self._path(path), compression=None) as stream:
                while piece := stream.read(_PIECE_BYTES):
                    size += len(piece)
                    crc32 = zlib.crc32(piece, crc32)
            return FileEntry(path, size, crc32)

        return self._retry(measure, path)

    def remove(self, path: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError):
            self._retry(lambda: self.filesystem.delete_file(self._path(path)), path)

    def remove_tree(self, path: str) -> None:
        """Delete a directory with all that is in it."""
        with suppress(FileNotFoundError):
            self._retry(lambda: self.filesystem.delete_dir(self._path(path)), path)

    def rename(self, old: str, new: str) -> bool:  # noqa: ARG002
        """Say that it cannot be done: an object store renames file by file."""
        return False

    def make_directory(self, path: str) -> None:
        """Do nothing: a directory comes with the first file in it."""

    def sync(self, paths: Iterable[str]) -> None:
        """Do nothing: what was written is there."""

    def free_bytes(self) -> int | None:
        """Return None: nobody says."""
        return None

    def takes_no_room(self, source: Path, *, move: bool) -> bool:  # noqa: ARG002
        """Say that everything is written."""
        return False

    def _retry(self, action: Callable[[], T], path: str) -> T:
        return self.retry(action, self._path(path))

    def _path(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root


def _lists_directories(filesystem: FileSystem) -> bool:
    """Return whether a directory that nobody has made, only files in it, is listed.

    ``pyarrow`` lists of Google's only what there is an object for.
    """
    while filesystem.type_name == "subtree":
        filesystem = filesystem.base_fs
    return bool(filesystem.type_name != "gcs")
