"""Checkpoints on a local disk: files first, then, last, the manifest that makes them one.

A directory without a whole manifest is not a checkpoint: nobody lists it, nothing resumes from
it, and the next start of the run sweeps it away.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitrain._storage.files import read_json, sync_directory, write_json
from minitrain._storage.ranking import Registered

__all__ = [
    "MANIFEST",
    "FileEntry",
    "begin",
    "commit",
    "committed",
    "copy_into",
    "delete",
    "is_committed",
    "merge_entries",
    "read_manifest",
    "sweep",
]

MANIFEST = ".manifest.json"
_UNFINISHED = ".unfinished"
_TEMPORARY = ".part-"
_CHUNK_BYTES = 1 << 20
_OUR_NAMES = re.compile(r"checkpoint_\d{6,}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a checkpoint as it was written.

    Attributes:
        path: Its path within the checkpoint.
        size_bytes: Its size.
        crc32: Its checksum.
    """

    path: str
    size_bytes: int
    crc32: int


def begin(path: Path) -> None:
    """Make the directory of a checkpoint to be, and mark it as unfinished, in one step.

    Raises:
        FileExistsError: The name is taken, by a checkpoint or anything else.
    """
    if path.exists():
        raise FileExistsError(path)
    nameless = _nameless(path)
    nameless.mkdir()
    (nameless / _UNFINISHED).touch()
    nameless.rename(path)


def _nameless(path: Path) -> Path:
    """Return a name beside ``path`` that no checkpoint has, and that is swept if it stays."""
    return path.with_name(f"{_UNFINISHED}-{uuid.uuid4().hex[:12]}")


def copy_into(source: Path, target: Path) -> tuple[FileEntry, ...]:
    """Copy every file below ``source`` to ``target``, durably, and say what was written.

    Other ranks may be writing to ``target`` as well. A file appears under its name only when it
    is whole; where two ranks write the same name, one of the two whole files stays.

    Raises:
        OSError: The disk is full, or a file cannot be read. What was copied stays uncommitted.
    """
    entries = []
    directories = {target}
    for folder, _, names in os.walk(source, followlinks=True):
        relative = Path(folder).relative_to(source)
        (target / relative).mkdir(parents=True, exist_ok=True)
        directories.add(target / relative)
        for name in sorted(names):
            if relative == Path() and name in {MANIFEST, _UNFINISHED}:
                continue  # of the checkpoint that this one is made from
            entries.append(_copy_file(Path(folder, name), target, relative / name))
    for directory in sorted(directories, reverse=True):
        sync_directory(directory)
    return tuple(entries)


def _copy_file(source: Path, target: Path, name: Path) -> FileEntry:
    final = target / name
    temporary = final.with_name(f"{_TEMPORARY}{uuid.uuid4().hex[:12]}")
    checksum = size = 0
    try:
        with source.open("rb") as reader, temporary.open("wb") as writer:
            while chunk := reader.read(_CHUNK_BYTES):
                checksum = zlib.crc32(chunk, checksum)
                size += len(chunk)
                writer.write(chunk)
            writer.flush()
            os.fsync(writer.fileno())
        shutil.copymode(source, temporary)
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return FileEntry(name.as_posix(), size, checksum)


def merge_entries(path: Path, parts: Iterable[Sequence[FileEntry]]) -> list[FileEntry]:
    """Return the files of all ranks as they are on disk.

    Where several ranks wrote the same name with different contents, the one that stayed counts.
    """
    merged: dict[str, FileEntry] = {}
    for part in parts:
        for entry in part:
            if merged.setdefault(entry.path, entry) != entry:
                merged[entry.path] = _entry_on_disk(path, entry.path)
    return [merged[name] for name in sorted(merged)]


def _entry_on_disk(path: Path, name: str) -> FileEntry:
    checksum = size = 0
    with (path / name).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
            size += len(chunk)
    return FileEntry(name, size, checksum)


def commit(
    path: Path, entries: Iterable[FileEntry], sequence: int, report: Mapping[str, Any]
) -> Registered:
    """Make a directory a checkpoint by writing its manifest.

    Args:
        path: The directory; all its files are written and durable.
        entries: Those files.
        sequence: How many checkpoints of the run were committed before.
        report: The row of the run's tables that the checkpoint belongs to.
    """
    files = {entry.path: {"bytes": entry.size_bytes, "crc32": entry.crc32} for entry in entries}
    manifest = {"version": 1, "sequence": sequence, "files": files, "report": dict(report)}
    write_json(path / MANIFEST, manifest)
    (path / _UNFINISHED).unlink(missing_ok=True)
    sync_directory(path.parent)
    return Registered(path.name, sequence, dict(report))


def committed(root: Path) -> list[Registered]:
    """Return every checkpoint in a run's directory, oldest first."""
    found = []
    for path in root.iterdir():
        manifest = read_manifest(path)
        if manifest is not None and not path.name.startswith(_UNFINISHED):
            found.append(Registered(path.name, manifest["sequence"], manifest["report"]))
    return sorted(found, key=lambda checkpoint: checkpoint.sequence)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint's manifest; None if the directory is not a checkpoint."""
    try:
        manifest = read_json(path / MANIFEST)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    whole = isinstance(manifest, dict) and {"sequence", "files", "report"} <= manifest.keys()
    return manifest if whole else None


def is_committed(path: Path) -> bool:
    """Return whether a directory is a checkpoint."""
    return read_manifest(path) is not None


def delete(path: Path) -> None:
    """Delete a checkpoint; it stops being one in one step, then its files go."""
    nameless = _nameless(path)
    with suppress(FileNotFoundError):
        path.rename(nameless)
    shutil.rmtree(nameless, ignore_errors=True)


def sweep(root: Path) -> list[str]:
    """Delete the directories of checkpoints that were never finished, and return their names.

    Whatever else lies in a run's directory is the user's, and stays.
    """
    swept = []
    for path in sorted(root.iterdir()):
        ours = _OUR_NAMES.fullmatch(path.name) or (path / _UNFINISHED).exists()
        unfinished = ours and path.is_dir() and not is_committed(path)
        if unfinished or path.name.startswith(_UNFINISHED):
            shutil.rmtree(path, ignore_errors=True)
            swept.append(path.name)
    return swept
