"""The manifest that makes a directory a checkpoint, and what is wrong with its files.

Works on any ``pyarrow.fs`` filesystem. Nothing is written here.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = [
    "DATASETS",
    "MANIFEST",
    "METADATA",
    "FileState",
    "Manifest",
    "checksum",
    "differences",
    "files_of",
    "find_problems",
    "list_files",
    "parse",
    "read",
]

MANIFEST = ".manifest.json"
METADATA = ".metadata.json"
DATASETS = ".datasets.json"
_CHUNK_BYTES = 1 << 20
_NUM_READERS = 8


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as it was written, or as it was found.

    Attributes:
        size_bytes: Its size.
        crc32: Its checksum; None if it is not known.
    """

    size_bytes: int
    crc32: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint consists of.

    Attributes:
        files: Every file as it was written, by its path within the checkpoint.
    """

    files: Mapping[str, FileState]

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size_bytes for file in self.files.values())


def parse(data: bytes) -> Manifest:
    """Return the manifest that a file holds.

    Raises:
        ValueError: It is no manifest, or only part of one.
    """
    try:
        manifest: dict[str, Any] = json.loads(data)
        if manifest["crc32"] != checksum(manifest):
            raise ValueError("it was changed after it was written")
        return Manifest(files_of(manifest))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a manifest: {error!r}") from error


def checksum(manifest: Mapping[str, Any]) -> int:
    """Return the checksum of a manifest itself, which is kept in it under ``crc32``."""
    content = {name: value for name, value in manifest.items() if name != "crc32"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def files_of(manifest: Mapping[str, Any]) -> dict[str, FileState]:
    """Return the files that a manifest names, as they were written."""
    return {
        name: FileState(int(file["bytes"]), file["crc32"])
        for name, file in manifest["files"].items()
    }


def read(filesystem: FileSystem, path: str) -> Manifest | None:
    """Return the manifest of a directory; None if it has none.

    Raises:
        ValueError: It has one that cannot be understood.
    """
    try:
        with filesystem.open_input_stream(f"{path.rstrip('/')}/{MANIFEST}") as stream:
            data = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse(data)


def list_files(filesystem: FileSystem, path: str) -> dict[str, int]:
    """Return every file below a directory, by its path within it, and its size.

    The one thing that all storages list in the same way: in most, directories are only a part of
    the files' names, and some of them are not listed.
    """
    from pyarrow.fs import FileSelector, FileType

    root = f"{path.strip('/')}/"  # some filesystems list without the slash they were asked with
    return {
        info.path.lstrip("/").removeprefix(root): info.size
        for info in filesystem.get_file_info(FileSelector(path, recursive=True))
        if info.type == FileType.File
    }


def differences(
    written: Mapping[str, FileState], found: Mapping[str, FileState | OSError]
) -> list[str]:
    """Say of every file that is not as it was written what is wrong with it. Pure.

    Files that were added are no problem. A checksum that is not known on one side is not compared.

    >>> differences({"weights": FileState(20)}, {"weights": FileState(10)})
    ['weights: 10 bytes instead of 20']
    """
    problems = []
    for name, before in sorted(written.items()):
        now = found.get(name)
        if now is None:
            problems.append(f"{name}: missing ({before.size_bytes} bytes)")
        elif isinstance(now, OSError):
            problems.append(f"{name}: cannot be read ({now})")
        elif now.size_bytes != before.size_bytes:
            problems.append(f"{name}: {now.size_bytes} bytes instead of {before.size_bytes}")
        elif None not in (now.crc32, before.crc32) and now.crc32 != before.crc32:
            problems.append(
                f"{name}: checksum {now.crc32:08x} instead of {before.crc32:08x} "
                f"({now.size_bytes} bytes)"
            )
    return problems


def find_problems(
    manifest: Manifest, filesystem: FileSystem, path: str, *, contents: bool
) -> list[str]:
    """Compare the files of a directory with its manifest.

    Args:
        manifest: What was written.
        filesystem: Where the directory lies.
        path: The directory.
        contents: Whether to read the files for their checksums, not only compare sizes.
    """
    written = {name: file for name, file in manifest.files.items() if name != METADATA}
    found: dict[str, FileState | OSError] = {
        name: FileState(size)
        for name, size in list_files(filesystem, path).items()
        if name in written  # what was added since is the user's
    }
    if contents:
        of_right_size = [
            name
            for name, now in found.items()
            if now == FileState(written[name].size_bytes) and written[name].crc32 is not None
        ]

        def look_into(name: str) -> FileState | OSError:
            return _look_into(filesystem, f"{path.rstrip('/')}/{name}")

        with ThreadPoolExecutor(_NUM_READERS, "minitrain-verify") as readers:
            found.update(zip(of_right_size, readers.map(look_into, of_right_size), strict=True))
    return differences(written, found)


def _look_into(filesystem: FileSystem, path: str) -> FileState | OSError:
    checksum = size = 0
    try:
        with filesystem.open_input_stream(path) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                checksum = zlib.crc32(chunk, checksum)
                size += len(chunk)
    except OSError as error:  # of one file: the others are looked at all the same
        return error
    return FileState(size, checksum)
