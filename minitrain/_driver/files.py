"""Serves the run's directory to workers that cannot reach it: does on its disk what they ask.

Nothing outside that directory is touched. What is written appears under its name when it is
whole; it is durable when the worker has asked for that (``sync``), which it does before it reports
a checkpoint.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from minitrain._driver.clerk import Clerk, Outcome
from minitrain._storage.copying import copy_file, start_writing_back
from minitrain._storage.disk import TEMPORARY
from minitrain._storage.file_calls import Body, Frames, Part, answer, failure
from minitrain._storage.files import sync_directory

__all__ = ["Desk", "RunFiles"]

_PART_BYTES = 128 << 10
"""Answers travel in parts, so that what else is said to an agent need not wait for long."""

_Described: TypeAlias = tuple[str, str | None, int | None, int | None]


class RunFiles:
    """Answers the workers of a run, attempt after attempt.

    Args:
        root: The run's directory.
        readable: Directories elsewhere that workers may read.
        clerk: Does the work, call after call.
        send: Called with a rank and a part of the answer to it.
    """

    def __init__(
        self,
        root: str,
        readable: Collection[str],
        clerk: Clerk,
        send: Callable[[int, bytes], object],
    ) -> None:
        self._root = root
        self._readable = readable
        self._clerk = clerk
        self._send = send
        self._callers: dict[int, tuple[Desk, Frames]] = {}

    def take(self, rank: int, data: bytes) -> None:
        """Take a part of what a worker asks, and have it done when it is complete."""
        if rank not in self._callers:
            self._callers[rank] = Desk(self._root, self._readable), Frames()
        desk, frames = self._callers[rank]
        for part in frames.feed(data):
            self._clerk.do(partial(desk.serve, part), partial(self._say, self._callers, rank))

    def _say(self, callers: object, rank: int, outcome: Outcome[tuple[Body, ...]]) -> None:
        assert not isinstance(outcome, Exception)  # a desk catches them
        if callers is not self._callers:
            return  # of an attempt that is over
        for data in outcome:
            for begin in range(0, len(data), _PART_BYTES):
                self._send(rank, bytes(data[begin : begin + _PART_BYTES]))

    def end_attempt(self) -> None:
        """Forget the workers: close what they had open, delete what they had not written whole."""
        for desk, _ in self._callers.values():
            self._clerk.do(desk.close, lambda _: None)
        self._callers = {}

    close = end_attempt


@dataclass(slots=True)
class _Written:
    """A file that is being written.

    Attributes:
        descriptor: It.
        temporary: Its name for now.
        final: The name it gets.
        size_bytes: How much is written.
    """

    descriptor: int
    temporary: Path
    final: Path
    size_bytes: int = 0


class Desk:
    """Does what one worker asks.

    Args:
        root: The run's directory.
        readable: Directories elsewhere that may be read.
    """

    def __init__(self, root: str, readable: Collection[str] = ()) -> None:
        self._name = os.path.abspath(root)  # noqa: PTH100 - keeps symlinks
        self._root = os.path.realpath(root)
        self._readable = [self._root, *map(os.path.realpath, readable)]
        self._handles = 0
        self._problem: Exception | None = None
        self._read_fds: dict[int, int] = {}
        self._written: dict[int, _Written] = {}
        self._unsynced: dict[Path, None] = {}
        self._operations: dict[str, Callable[..., Any]] = {
            "describe": self._describe,
            "list": self._list,
            "make_directory": self._make_directory,
            "remove_directory": self._remove_directory,
            "remove_file": self._remove_file,
            "move": self._move,
            "copy": self._copy,
            "open": self._open,
            "close": self._close,
            "create": self._create,
            "publish": self._publish,
            "discard": self._discard,
            "sync": self._sync,
            "free_bytes": self._free_bytes,
        }

    def serve(self, part: Part) -> tuple[Body, ...]:
        """Do what a part of a call asks, and return the answer; none before the last part.

        What fails is an answer as well: it is raised in the worker.
        """
        operation, *arguments = part.head
        value: Any = None
        body: Body = b""
        try:
            if operation == "read":
                body = self._read(*arguments)
            elif operation == "write":
                self._write(arguments[0], part.body)
            else:
                value = self._operations[operation](*arguments)
        except Exception as error:  # noqa: BLE001 - a stranger's, too
            self._problem = self._problem or error
        if not part.is_last:
            return ()
        problem, self._problem = self._problem, None
        return (answer(value, body), body) if problem is None else (failure(problem),)

    def close(self) -> None:
        """Close everything that is open; what is not whole is deleted."""
        for descriptor in self._read_fds.values():
            os.close(descriptor)
        self._read_fds.clear()
        for handle in list(self._written):
            self._discard(handle)

    # ------------------------------------------------------------------ what is there
    def _describe(self, paths: Iterable[str]) -> list[_Described]:
        return [_described(path, self._reading(path)) for path in paths]

    def _list(self, path: str, recursive: bool, may_be_missing: bool) -> list[_Described]:  # noqa: FBT001
        found: list[_Described] = []
        try:
            with os.scandir(self._reading(path)) as entries:
                names = sorted(entry.name for entry in entries)
        except FileNotFoundError:
            if may_be_missing:
                return found
            raise
        for name in names:
            below = f"{path.rstrip('/')}/{name}"
            with suppress(PermissionError):  # a link that leads elsewhere
                one = _described(below, self._reading(below))
                found.append(one)
                if recursive and one[1] == "directory":
                    found += self._list(below, recursive, may_be_missing=True)
        return found

    def _open(self, path: str) -> tuple[int, int]:
        descriptor = os.open(self._reading(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            os.close(descriptor)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        handle = self._new_handle()
        self._read_fds[handle] = descriptor
        return handle, facts.st_size

    def _read(self, handle: int, offset: int, size: int) -> bytes:
        return os.pread(self._read_fds[handle], size, offset)

    def _close(self, handle: int) -> None:
        os.close(self._read_fds.pop(handle))

    def _free_bytes(self) -> int:
        facts = os.statvfs(self._root)
        return facts.f_bavail * facts.f_frsize

    # ------------------------------------------------------------------ what is written
    def _create(self, path: str) -> int:
        final = self._writing(path)
        if final.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        temporary = final.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o666)
        handle = self._new_handle()
        self._written[handle] = _Written(descriptor, temporary, final)
        return handle

    def _write(self, handle: int, data: Body) -> None:
        """Append to a file, and have the kernel begin to bring it to the disk."""
        file = self._written[handle]
        begin = file.size_bytes
        try:
            while data:
                count = os.write(file.descriptor, data)
                file.size_bytes += count
                data = data[count:]
        except OSError:
            self._discard(handle)
            raise
        start_writing_back(file.descriptor, begin, file.size_bytes - begin)

    def _publish(self, handle: int) -> None:
        file = self._written[handle]
        try:
            file.temporary.replace(file.final)
        except OSError:
            self._discard(handle)
            raise
        del self._written[handle]
        self._unsynced[file.final] = None
        os.close(file.descriptor)

    def _discard(self, handle: int) -> None:
        file = self._written.pop(handle)
        os.close(file.descriptor)
        with suppress(OSError):  # it has gone with its directory
            file.temporary.unlink()

    def _sync(self, directories: Iterable[str]) -> None:
        while self._unsynced:
            path, _ = self._unsynced.popitem()
            with suppress(FileNotFoundError):  # deleted, or renamed with its directory
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        for directory in directories:
            sync_directory(self._writing(directory))

    # ------------------------------------------------------------------ directories and names
    def _make_directory(self, path: str, recursive: bool) -> None:  # noqa: FBT001
        self._writing(path).mkdir(parents=recursive, exist_ok=True)

    def _remove_directory(self, path: str) -> None:
        shutil.rmtree(self._writing(path, but_root=True))

    def _remove_file(self, path: str) -> None:
        self._writing(path, but_root=True).unlink()

    def _move(self, source: str, target: str) -> None:
        self._writing(source, but_root=True).rename(self._writing(target, but_root=True))

    def _copy(self, source: str, target: str) -> None:
        copy_file(self._reading(source), self._writing(target))

    def _new_handle(self) -> int:
        self._handles += 1
        return self._handles

    def _reading(self, path: str) -> Path:
        return self._within(self._readable, path)

    def _writing(self, path: str, *, but_root: bool = False) -> Path:
        absolute = os.path.abspath(path)  # noqa: PTH100 - keeps symlinks
        if os.path.islink(absolute) and absolute != self._name:  # noqa: PTH114
            above, name = os.path.split(absolute)
            return self._within([self._root], above) / name  # the link itself
        found = self._within([self._root], absolute)
        if but_root and found == Path(self._root):
            raise PermissionError(errno.EACCES, "is the run's directory itself", path)
        return found

    def _within(self, folders: Iterable[str], path: str) -> Path:
        """Return where a path leads, through all links, if that is in one of some directories."""
        real = os.path.realpath(path)
        if not any(real == folder or real.startswith(f"{folder}/") for folder in folders):
            text = f"is not in the run's directory, {self._root}, and nothing else can be reached"
            raise PermissionError(errno.EACCES, text, path)
        return Path(real)


def _described(name: str, path: Path) -> _Described:
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return name, None, None, None
    if stat.S_ISDIR(facts.st_mode):
        return name, "directory", None, facts.st_mtime_ns
    kind = "file" if stat.S_ISREG(facts.st_mode) else "other"
    return name, kind, facts.st_size, facts.st_mtime_ns
