"""The run's directory as a worker sees it that cannot reach it: the driver does what it asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pyarrow import PythonFile
from pyarrow.fs import (
    FileInfo,
    FileSelector,
    FileSystem,
    FileSystemHandler,
    FileType,
    LocalFileSystem,
    PyFileSystem,
)

from minitrain._storage.arrow import ArrowDisk
from minitrain._storage.file_calls import PIECE_BYTES, Body
from minitrain._storage.file_connection import connection, is_connected
from minitrain._storage.layout import RECORD

__all__ = ["HomeDisk", "HomeFileSystem"]


class HomeDisk(ArrowDisk):
    """The run's directory, on the driver's disk."""

    num_parallel = 2  # one reads what it is to send while the other one sends

    def _write(self, path: str, pieces: Iterable[bytes]) -> None:
        """Send pieces without the copies that ``pyarrow`` makes of them."""
        writer = _Writer(self._path(path))
        try:
            for piece in pieces:
                writer.write(piece)
        except BaseException:
            writer.discard()
            raise
        writer.close()

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it."""
        self.filesystem.create_dir(self._path(path), recursive=True)

    def sync(self, paths: Iterable[str]) -> None:
        """Make durable what this worker has written, and the names in directories."""
        connection().call("sync", [self._path(path) for path in paths])

    def free_bytes(self) -> int | None:
        """Return how much more fits on it."""
        return int(connection().call("free_bytes")[0])


class HomeFileSystem(PyFileSystem):  # type: ignore[misc]
    """The driver's disk as a ``pyarrow.fs`` filesystem.

    Where the run's directory is at hand, as in the driver, it is unpickled as the local one.

    Args:
        root: The run's directory.
    """

    def __init__(self, root: str) -> None:
        super().__init__(_Handler(root))

    def __reduce__(self) -> tuple[Any, ...]:
        return _filesystem_here, (self.handler.root,)


def _filesystem_here(root: str) -> FileSystem:
    if not is_connected() and Path(root, RECORD).exists():
        return LocalFileSystem()
    return HomeFileSystem(root)


class _Handler(FileSystemHandler):  # type: ignore[misc]
    """Translates what ``pyarrow`` asks of a filesystem to calls."""

    def __init__(self, root: str) -> None:
        self.root = root

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handler) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def get_type_name(self) -> str:
        return "minitrain-driver"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[FileInfo]:
        return [_info(one) for one in _ask("describe", list(paths))]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        found = _ask("list", selector.base_dir, selector.recursive, selector.allow_not_found)
        return [_info(one) for one in found]

    def create_dir(self, path: str, recursive: bool) -> None:  # noqa: FBT001 - pyarrow's
        _ask("make_directory", path, recursive)

    def delete_dir(self, path: str) -> None:
        _ask("remove_directory", path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:  # noqa: FBT001
        is_recursive = False
        for one in _ask("list", path, is_recursive, missing_dir_ok):
            _ask("remove_directory" if one[1] == "directory" else "remove_file", one[0])

    def delete_root_dir_contents(self) -> None:
        raise PermissionError("what is not the run's cannot be deleted")

    def delete_file(self, path: str) -> None:
        _ask("remove_file", path)

    def move(self, src: str, dest: str) -> None:
        _ask("move", src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        _ask("copy", src, dest)

    def open_input_stream(self, path: str) -> PythonFile:
        return PythonFile(_Reader(path), mode="r")

    def open_input_file(self, path: str) -> PythonFile:
        return PythonFile(_Reader(path), mode="r")

    def open_output_stream(self, path: str, metadata: object) -> PythonFile:  # noqa: ARG002
        return PythonFile(_Writer(path), mode="w")

    def open_append_stream(self, path: str, metadata: object) -> PythonFile:
        raise NotImplementedError(f"{path}: files of a run are written whole; nothing is appended")


def _ask(operation: str, *arguments: Any) -> Any:
    return connection().call(operation, *arguments)[0]


def _info(described: tuple[str, str | None, int | None, int | None]) -> FileInfo:
    path, kind, size, mtime_ns = described
    kinds = {"file": FileType.File, "directory": FileType.Directory, None: FileType.NotFound}
    return FileInfo(path, kinds.get(kind, FileType.Unknown), size=size, mtime_ns=mtime_ns)


class _Reader:
    """A file that is read, as ``pyarrow`` wants it."""

    def __init__(self, path: str) -> None:
        self._handle, self._size = _ask("open", path)
        self._position = 0
        self.closed = False

    def read(self, size: int = -1) -> Body:
        end = self._size if size < 0 else min(self._size, self._position + size)
        pieces = []
        while self._position < end:
            wanted = min(PIECE_BYTES, end - self._position)
            _, piece = connection().call("read", self._handle, self._position, wanted)
            if not piece:
                break  # it has become shorter
            self._position += len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            _ask("close", self._handle)


class _Writer:
    """A file that is written and appears, whole, when it is closed."""

    def __init__(self, path: str) -> None:
        self._handle = _ask("create", path)
        self._position = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), PIECE_BYTES):
            try:
                connection().call("write", self._handle, body=view[begin : begin + PIECE_BYTES])
            except BaseException:
                self.closed = True  # the driver has deleted it
                raise
        self._position += len(view)
        return len(view)

    def discard(self) -> None:
        if not self.closed:
            self.closed = True
            _ask("discard", self._handle)

    def flush(self) -> None:
        pass

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            _ask("publish", self._handle)
