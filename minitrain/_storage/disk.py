"""What a run's directory asks of the disk it lies on, and the answer of a local one."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from minitrain._storage.copying import can_clone, checksum, copy_file
from minitrain._storage.files import sync_directory, write_bytes

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["TEMPORARY", "Disk", "FileEntry", "LocalDisk"]

TEMPORARY = ".part-"
"""What the name of a file that is not whole yet begins with."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a checkpoint as it was written.

    Attributes:
        path: Its path within the checkpoint.
        size_bytes: Its size.
        crc32: Its checksum; None where nobody has read it.
    """

    path: str
    size_bytes: int
    crc32: int | None


class Disk(Protocol):
    """A directory somewhere. Paths are relative to it and have slashes; none leads out of it."""

    @property
    def root(self) -> str:
        """The directory."""

    @property
    def is_local(self) -> bool:
        """Whether other programs on this machine can open its files by their path."""

    @property
    def filesystem(self) -> FileSystem:
        """The ``pyarrow.fs`` filesystem in which ``root`` is a path."""

    @property
    def num_parallel(self) -> int:
        """How many files at once it takes to keep it busy."""

    def scan(self, path: str = "") -> dict[str, bool]:
        """Return every name in a directory, and whether it is a directory; none if there is none.

        Args:
            path: The directory.
        """

    def walk(self, path: str) -> dict[str, int]:
        """Return the path, relative to ``path``, and size of every file below a directory."""

    def read(self, path: str) -> bytes:
        """Return what a file holds.

        Raises:
            FileNotFoundError: There is none.
        """

    def write(self, path: str, data: bytes) -> None:
        """Replace a file by a small one, durably; whoever reads it sees the old or the new one."""

    def mark(self, path: str) -> None:
        """Make an empty file; it is durable when its directory is."""

    def put(self, source: Path, path: str, *, move: bool = False) -> FileEntry:
        """Copy a local file to where it appears under its name when it is whole.

        Args:
            source: The file.
            path: Its new name; the entry's too.
            move: Whether the source may be renamed instead.
        """

    def measure(self, path: str) -> FileEntry:
        """Read a file through and return what was found, after it was made durable.

        Raises:
            FileNotFoundError: There is none.
        """

    def remove(self, path: str) -> None:
        """Delete a file, if it is there."""

    def remove_tree(self, path: str) -> None:
        """Delete a directory with all that is in it, as far as possible."""

    def rename(self, old: str, new: str) -> bool:
        """Rename a directory in one step; False where there is no such thing.

        Raises:
            FileNotFoundError: There is none.
        """

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it, where directories have to be made."""

    def sync(self, paths: Iterable[str]) -> None:
        """Make the names in directories durable."""

    def free_bytes(self) -> int | None:
        """Return how much more fits on it; None where that is not known."""

    def takes_no_room(self, source: Path, *, move: bool) -> bool:
        """Return whether a file can be put without writing its contents again.

        Args:
            source: The file.
            move: Whether it may be renamed.
        """


@dataclass(frozen=True)
class LocalDisk:
    """A directory that the operating system has mounted.

    Attributes:
        root: Its absolute path.
    """

    root: str
    is_local = True
    num_parallel = 4

    @property
    def filesystem(self) -> FileSystem:
        """The ``pyarrow.fs`` filesystem in which ``root`` is a path."""
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()

    def scan(self, path: str = "") -> dict[str, bool]:
        """Return every name in a directory, and whether it is a directory; none if there is none.

        Args:
            path: The directory.
        """
        with suppress(FileNotFoundError), os.scandir(self._path(path)) as found:
            return {one.name: one.is_dir() for one in found}
        return {}

    def walk(self, path: str) -> dict[str, int]:
        """Return the path, relative to ``path``, and size of every file below a directory."""
        top = self._path(path)
        sizes = {}
        for folder, _, names in os.walk(top, followlinks=True, onerror=_fail_unless_gone):
            for name in names:
                file = Path(folder, name)
                with suppress(FileNotFoundError):  # another process has just renamed it
                    sizes[file.relative_to(top).as_posix()] = file.stat().st_size
        return sizes

    def read(self, path: str) -> bytes:
        """Return what a file holds."""
        return self._path(path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically and durably."""
        write_bytes(self._path(path), data)

    def mark(self, path: str) -> None:
        """Make an empty file."""
        self._path(path).touch()

    def put(self, source: Path, path: str, *, move: bool = False) -> FileEntry:
        """Copy a file durably, as a clone where the filesystem can, or rename it."""
        final = self._path(path)
        if move and _can_rename(source, final.parent):
            entry = self._measure(source, path)
            source.replace(final)
            return entry
        if not stat.S_ISREG(source.stat().st_mode):
            raise OSError(f"{source}: is neither a file nor a directory")  # a pipe would block
        temporary = final.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}")
        try:
            size, crc32 = copy_file(source, temporary)
            temporary.replace(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return FileEntry(path, size, crc32)

    def measure(self, path: str) -> FileEntry:
        """Read a file through and return what was found, after it was made durable."""
        return self._measure(self._path(path), path)

    def _measure(self, file: Path, path: str) -> FileEntry:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            size, crc32 = checksum(descriptor)
        finally:
            os.close(descriptor)
        return FileEntry(path, size, crc32)

    def remove(self, path: str) -> None:
        """Delete a file, if it is there."""
        self._path(path).unlink(missing_ok=True)

    def remove_tree(self, path: str) -> None:
        """Delete a directory with all that is in it, as far as possible."""
        shutil.rmtree(self._path(path), ignore_errors=True)

    def rename(self, old: str, new: str) -> bool:
        """Rename a directory in one step."""
        self._path(old).rename(self._path(new))
        return True

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it."""
        self._path(path).mkdir(parents=True, exist_ok=True)

    def sync(self, paths: Iterable[str]) -> None:
        """Make the names in directories durable."""
        for path in paths:
            sync_directory(self._path(path))

    def free_bytes(self) -> int | None:
        """Return how much more fits on it."""
        facts = os.statvfs(self.root)
        return facts.f_bavail * facts.f_frsize

    def takes_no_room(self, source: Path, *, move: bool) -> bool:
        """Return whether renaming a file, or sharing its blocks, is enough."""
        if move and _can_rename(source, Path(self.root)):
            return True
        with source.open("rb") as reader, tempfile.TemporaryFile(dir=self.root) as writer:
            return can_clone(reader.fileno(), writer.fileno())

    def _path(self, path: str) -> Path:
        return Path(self.root, path)


def _fail_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _can_rename(source: Path, folder: Path) -> bool:
    """Return whether a file has this one name only, on the filesystem of a directory."""
    facts = source.lstat()
    is_own = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1
    return is_own and facts.st_dev == folder.stat().st_dev
