"""Checkpoints of a run: files first, then, last, the manifest that makes them one.

A directory without a whole manifest is not a checkpoint: nobody lists it, nothing resumes from
it, and the next start of the run sweeps it away. What a disk cannot do in one step is done in an
order in which every step leaves a whole checkpoint or one that is swept.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minitrain import _manifest
from minitrain._logging import logger
from minitrain._manifest import DATASETS, MANIFEST, METADATA, FileState
from minitrain._storage.disk import TEMPORARY, Disk, FileEntry
from minitrain._storage.ranking import Registered
from minitrain.checkpoint import Checkpoint
from minitrain.exceptions import OutOfSpaceError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["RunStorage"]

_UNFINISHED = ".unfinished"
_DAMAGED = ".damaged"
_MARKS = frozenset({DATASETS, MANIFEST, _UNFINISHED, _DAMAGED})
_OUR_NAMES = re.compile(r"checkpoint_(\d{6,})")
_NUMBERED = re.compile(r"(?:damaged_)?checkpoint_(\d{6,})(?:_\d+)?")
_PART = re.compile(rf"(.*/)?{re.escape(TEMPORARY)}[0-9a-f]{{12}}")

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class RunStorage:
    """The directory of one run, on any disk.

    Attributes:
        disk: Where it is.
    """

    disk: Disk

    @property
    def root(self) -> str:
        """The directory."""
        return self.disk.root

    @property
    def is_local(self) -> bool:
        """Whether other programs on this machine can open its files by their path."""
        return self.disk.is_local

    @property
    def filesystem(self) -> FileSystem:
        """The ``pyarrow.fs`` filesystem in which ``root`` is a path."""
        return self.disk.filesystem

    def checkpoint(self, name: str) -> Checkpoint:
        """Return a reference to a checkpoint."""
        path = f"{self.root}/{name}"
        return Checkpoint(path) if self.is_local else Checkpoint(path, self.filesystem)

    # What makes a checkpoint, in order.

    def begin(self, name: str) -> None:
        """Take the name of a checkpoint to be, and mark it as unfinished, in one step.

        Only on a local disk. Elsewhere nothing is done: :meth:`put` leaves the mark, and whoever
        gives out names remembers them.

        Raises:
            FileExistsError: The name is taken, by a checkpoint or anything else.
        """
        if not self.is_local:
            return
        if name in self.disk.scan():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), f"{self.root}/{name}")
        nameless = _nameless()
        self.disk.make_directory(nameless)
        self.disk.mark(f"{nameless}/{_UNFINISHED}")
        self.disk.rename(nameless, name)

    def put(self, source: Path, name: str, *, move: bool = False) -> tuple[FileEntry, ...]:
        """Copy every file below ``source`` into a checkpoint, durably, and say what was written.

        Other ranks may be writing to it as well. A file appears under its name only when it is
        whole; where two ranks write the same name, one of the two whole files stays. If anything
        fails, the files that were put are removed again.

        Args:
            source: A directory. What makes it a checkpoint itself, its manifest, is left out.
            name: The checkpoint, which was begun.
            move: Whether the files are given away: they are renamed where that is possible, and
                the directory is gone afterwards.

        Raises:
            OutOfSpaceError: They do not fit.
            OSError: A file cannot be read or written.
        """
        files, folders = _below(source)
        needed = sum(file.size_bytes for file in files)
        self._check_room(name, files, needed, move=move)
        if not self.is_local:
            self.disk.mark(f"{name}/{_UNFINISHED}")
        folders = [f"{name}/{folder}".rstrip("/") for folder in folders]
        for folder in folders:
            self.disk.make_directory(folder)
        written: list[str] = []

        def put_one(file: _Source) -> FileEntry:
            path = f"{name}/{file.name}"
            entry = self.disk.put(file.path, path, move=move and file.is_own)
            written.append(path)
            return replace(entry, path=file.name)

        try:
            entries = self._each(put_one, files)
            self.disk.sync(sorted(folders, reverse=True))
        except BaseException as error:
            with suppress(OSError):  # where the first cannot be removed, nobody waits for the rest
                for path in written:
                    self.disk.remove(path)
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise self._out_of_space(name, needed) from error
            raise
        if move:
            _remove_source(source)
        return tuple(entries)

    def _check_room(self, name: str, files: list[_Source], needed: int, *, move: bool) -> None:
        free = self.disk.free_bytes()
        if free is None or needed <= free:
            return
        largest = max(files, key=lambda file: file.size_bytes)
        if not self.disk.takes_no_room(largest.path, move=move and largest.is_own):
            raise self._out_of_space(name, needed)

    def _out_of_space(self, name: str, needed: int) -> OutOfSpaceError:
        return OutOfSpaceError(f"{self.root}/{name}", needed, self.disk.free_bytes())

    def adopt(self, name: str) -> tuple[FileEntry, ...]:
        """Return the files that are in a checkpoint already, after they were made durable.

        Files on a local disk are read for their checksums, others are not.
        """
        sizes = {path: size for path, size in self.disk.walk(name).items() if not _is_ours(path)}
        if not self.is_local:
            return tuple(FileEntry(path, size, None) for path, size in sorted(sizes.items()))
        entries = self._each(lambda path: self._measured(name, path), sorted(sizes))
        folders = {f"{name}/{path}".rpartition("/")[0] for path in sizes} | {name}
        self.disk.sync(sorted(folders, reverse=True))
        return tuple(entry for entry in entries if entry is not None)

    def _measured(self, name: str, path: str) -> FileEntry | None:
        """Return a file as it is; None if it is not there, or another process renamed it."""
        with suppress(FileNotFoundError):
            return replace(self.disk.measure(f"{name}/{path}"), path=path)
        return None

    def commit(
        self,
        name: str,
        parts: Iterable[Sequence[FileEntry]],
        sequence: int,
        report: Mapping[str, Any],
        metadata: Mapping[str, Any],
        positions: Mapping[str, Any] | None = None,
    ) -> Registered:
        """Make a directory a checkpoint by writing its manifest.

        Args:
            name: The directory; all its files are written and durable.
            parts: The files that each rank has put or adopted. Of several that were written under
                one name, the one that stayed counts.
            sequence: How many checkpoints of the run were committed before.
            report: The row of the run's tables that the checkpoint belongs to.
            metadata: The trainer's; added to the checkpoint's own for keys that are not set.
            positions: How far the run's datasets have been read, by name.

        Raises:
            OSError: It could not be written.
            ValueError: The checkpoint's own metadata is not JSON.
            TypeError: Its own metadata is not a dict.
        """
        merged = self._with_metadata(name, self._merged(name, parts), metadata)
        if positions:
            data = json.dumps(positions).encode()
            merged[DATASETS] = self._added(name, DATASETS, data)
        files = {
            path: {"bytes": entry.size_bytes, "crc32": entry.crc32}
            for path, entry in sorted(merged.items())
        }
        manifest = {"version": 1, "sequence": sequence, "files": files, "report": dict(report)}
        signed = {**manifest, "crc32": _manifest.checksum(manifest)}
        self.disk.write(f"{name}/{MANIFEST}", json.dumps(signed, indent=1).encode() + b"\n")
        self.disk.remove(f"{name}/{_UNFINISHED}")
        self.disk.sync([""])
        return Registered(name, sequence, dict(report))

    def _merged(self, name: str, parts: Iterable[Sequence[FileEntry]]) -> dict[str, FileEntry]:
        merged: dict[str, FileEntry] = {}
        disputed = set()
        for part in parts:
            for entry in part:
                if merged.setdefault(entry.path, entry) != entry:
                    disputed.add(entry.path)
        for path in disputed:
            merged[path] = replace(self.disk.measure(f"{name}/{path}"), path=path)
        return merged

    def _with_metadata(
        self, name: str, merged: dict[str, FileEntry], metadata: Mapping[str, Any]
    ) -> dict[str, FileEntry]:
        if not metadata:
            return merged
        own = {}
        with suppress(FileNotFoundError):
            own = json.loads(self.disk.read(f"{name}/{METADATA}"))
        data = json.dumps({**metadata, **own}).encode()
        return {**merged, METADATA: self._added(name, METADATA, data)}

    def _added(self, name: str, path: str, data: bytes) -> FileEntry:
        """Write a file of ours into a checkpoint to be."""
        self.disk.write(f"{name}/{path}", data)
        return FileEntry(path, len(data), zlib.crc32(data))

    # What is there.

    def committed(self) -> list[Registered]:
        """Return every checkpoint, oldest first."""
        names = [name for name in self._directories() if not name.startswith(_UNFINISHED)]
        found = [
            Registered(name, manifest["sequence"], manifest["report"])
            for name, manifest in zip(names, self._each(self.manifest, names), strict=True)
            if manifest is not None
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.sequence)

    def manifest(self, name: str) -> dict[str, Any] | None:
        """Return a checkpoint's manifest; None if the directory is not a checkpoint."""
        try:
            manifest = json.loads(self.disk.read(f"{name}/{MANIFEST}"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        if not isinstance(manifest, dict) or not {"sequence", "files", "report"} <= manifest.keys():
            return None
        return manifest if manifest.pop("crc32", None) == _manifest.checksum(manifest) else None

    def positions(self, name: str) -> dict[str, Any]:
        """Return how far datasets had been read when a checkpoint was reported, by name.

        Raises:
            ValueError: The file that says it is damaged.
        """
        path = f"{name}/{DATASETS}"
        try:
            positions = json.loads(self.disk.read(path))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if not isinstance(positions, dict):
            raise ValueError(f"{path} is damaged: it is no object")  # noqa: TRY004 - as above
        return positions

    def next_index(self, gone: Iterable[str] = ()) -> int:
        """Return a number that no checkpoint here, whole or not, has or had a higher one than.

        Args:
            gone: Names of others that there were.
        """
        matches = (_NUMBERED.fullmatch(name) for name in (*self.disk.scan(), *gone))
        return max((int(match[1]) for match in matches if match), default=-1) + 1

    def verify(self, name: str, *, contents: bool = True) -> list[str]:
        """Return what is wrong with a checkpoint, in words; nothing if it is whole.

        Args:
            name: The checkpoint.
            contents: Whether files are read for their checksums, where these are known; otherwise
                only their sizes are compared.
        """
        manifest = self.manifest(name)
        if manifest is None:
            return [f"{MANIFEST} is missing or cannot be read"]
        written = _manifest.files_of(manifest)
        written.pop(METADATA, None)  # may be changed at any time
        found: dict[str, FileState | OSError] = {
            path: FileState(size) for path, size in self.disk.walk(name).items() if path in written
        }

        def measured(path: str) -> FileState | OSError:
            try:
                return FileState(
                    written[path].size_bytes, self.disk.measure(f"{name}/{path}").crc32
                )
            except OSError as error:  # of one file: the others are looked at all the same
                return error

        if contents:
            paths = [
                path
                for path, file in written.items()
                if file.crc32 is not None and found.get(path) == FileState(file.size_bytes)
            ]
            found.update(zip(paths, self._each(measured, paths), strict=True))
        return _manifest.differences(written, found)

    # What goes.

    def delete(self, name: str) -> None:
        """Delete a checkpoint; it stops being one in one step, then its files go."""
        doomed = _nameless()
        try:
            renamed = self.disk.rename(name, doomed)
        except FileNotFoundError:
            return
        if not renamed:
            doomed = name
            self.disk.mark(f"{name}/{_UNFINISHED}")  # whatever its name, it is swept
            self.disk.remove(f"{name}/{MANIFEST}")
        self.disk.remove_tree(doomed)

    def sweep(self) -> list[str]:
        """Delete the directories of checkpoints that were never finished, and return their names.

        One that was finished, and whose manifest is damaged, is set aside. Whatever else lies in a
        run's directory is the user's, and stays.
        """
        names = self._directories()
        goes = self._each(self._is_debris, names)
        swept = []
        for name in (name for name, is_debris in zip(names, goes, strict=True) if is_debris):
            inside = self.disk.scan(name)
            finished = MANIFEST in inside and _UNFINISHED not in inside
            if finished and not name.startswith(_UNFINISHED):
                logger.warning("%s/%s: %s is damaged; set aside", self.root, name, MANIFEST)
                self.set_aside(name)
            else:
                self.disk.remove_tree(name)
                swept.append(name)
        return swept

    def _is_debris(self, name: str) -> bool:
        if name.startswith(_UNFINISHED):
            return True
        inside = self.disk.scan(name)
        if _DAMAGED in inside or not (_OUR_NAMES.fullmatch(name) or _UNFINISHED in inside):
            return False
        return self.manifest(name) is None

    def set_aside(self, name: str) -> None:
        """Make a damaged checkpoint none, and keep its files for the user.

        On a local disk it is called ``damaged_<name>`` afterwards.
        """
        try:
            manifest = self.disk.read(f"{name}/{MANIFEST}")
        except FileNotFoundError:
            manifest = b""
        self.disk.write(f"{name}/{_DAMAGED}", manifest)  # a sweep passes it over
        self.disk.remove(f"{name}/{MANIFEST}")
        if self.is_local:
            taken = self.disk.scan()
            new, number = f"damaged_{name}", 1
            while new in taken:
                number += 1
                new = f"damaged_{name}_{number}"
            self.disk.rename(name, new)
            self.disk.sync([""])

    # Other files of the run.

    def read(self, path: str) -> bytes:
        """Return what a file holds.

        Raises:
            FileNotFoundError: There is none.
        """
        return self.disk.read(path)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file durably; whoever reads it sees the old or the new one."""
        self.disk.make_directory(path.rpartition("/")[0])
        self.disk.write(path, data)

    def upload(self, source: Path, path: str) -> None:
        """Replace a file by a local one as it is now."""
        self.disk.make_directory(path.rpartition("/")[0])
        self.disk.put(source, path)

    def remove(self, path: str) -> None:
        """Delete a file, if it is there."""
        self.disk.remove(path)

    def exists(self, path: str) -> bool:
        """Return whether there is a file or a directory of that name."""
        folder, _, name = path.rpartition("/")
        return name in self.disk.scan(folder)

    def _directories(self) -> list[str]:
        return sorted(name for name, is_directory in self.disk.scan().items() if is_directory)

    def _each(self, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """Call a function for every item, several at once; the first error ends it."""
        items = list(items)
        if len(items) == 1:
            return [function(items[0])]
        with ThreadPoolExecutor(self.disk.num_parallel, "minitrain-storage") as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Source:
    """A file to put.

    Attributes:
        name: Its path within the checkpoint.
        path: Where it is.
        size_bytes: Its size.
        is_own: Whether it is reached without a link to a directory elsewhere.
    """

    name: str
    path: Path
    size_bytes: int
    is_own: bool


def _below(source: Path) -> tuple[list[_Source], list[str]]:
    """Return all files below a directory, and all directories, itself as nothing."""
    files, folders = [], []
    for folder, _, names in os.walk(source, followlinks=True, onerror=_fail):
        relative = Path(folder).relative_to(source)
        folders.append("" if relative == Path() else relative.as_posix())
        is_own = Path(folder).resolve() == source.resolve() / relative
        for name in sorted(names):
            if relative == Path() and name in _MARKS:
                continue  # of the checkpoint that this one is made from
            path = Path(folder, name)
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(f"{path} is neither a file nor a directory")
            files.append(_Source((relative / name).as_posix(), path, facts.st_size, is_own))
    return files, folders


def _fail(error: OSError) -> None:
    raise error


def _remove_source(source: Path) -> None:
    if source.is_symlink():
        source = source.resolve()
    shutil.rmtree(source, ignore_errors=True)


def _nameless() -> str:
    """Return a name that no checkpoint has, and that is swept if it stays."""
    return f"{_UNFINISHED}-{uuid.uuid4().hex[:12]}"


def _is_ours(path: str) -> bool:
    """Return whether a file in a checkpoint is not the user's."""
    return path in _MARKS or _PART.fullmatch(path) is not None
