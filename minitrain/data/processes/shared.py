"""Arrow tables in memory that other processes of this host can map instead of copying it.

Such memory has no name, neither in ``/dev/shm`` nor on a disk: it is there for as long as a
process holds a descriptor or maps it, so that nothing is left when all of them were killed, and
the size of a container's ``/dev/shm`` does not matter. Other processes find it as
``/proc/PID/fd/N`` of one that holds it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from minitrain._os.forks import unlock_in_forks
from minitrain._os.processes import began_at
from minitrain.data.values import common_schema, converted
from minitrain.exceptions import DataError, SchemaMismatchError

__all__ = ["NamelessFile", "SharedTable", "map_table", "once_per_host", "write_tables"]

_NAME = "minitrain-data"
"""What ``/proc/PID/maps`` shows of it."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NamelessFile:
    """Bytes that are written once: in memory, and in a file once they are too many for that.

    What of a file's methods pyarrow calls is there; to close it is left to who takes the
    descriptor.

    Attributes:
        descriptor: Where they are.
        size_bytes: How many were written.
        spilled: Whether they are in a file.

    Args:
        budget_bytes: How many may be in memory; None: any number.
        folder: Where the file would be; None: the temporary folder.
    """

    closed = False

    def __init__(self, budget_bytes: int | None, folder: str | os.PathLike[str] | None) -> None:
        self.size_bytes = 0
        self._budget_bytes = budget_bytes
        self._folder = tempfile.gettempdir() if folder is None else os.fspath(folder)
        try:
            self.descriptor = os.memfd_create(_NAME)
            self.spilled = False
        except (AttributeError, OSError):  # an old C library, or a sandbox that refuses it
            self.spilled = True
            self.descriptor = self._open_file()

    def write(self, data: Any) -> int:
        """Append all bytes of a buffer.

        Raises:
            DataError: There is no room for them.
        """
        with memoryview(data) as view, view.cast("B") as unwritten:
            size = len(unwritten)
            if not self.spilled and self._is_too_much(size):
                self._spill()
            written = 0
            with self._failures():
                while written < size:  # the kernel takes 2 GiB at most, and less on a full disk
                    written += os.write(self.descriptor, unwritten[written:])
        self.size_bytes += size
        return size

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Do nothing: the descriptor is still needed."""

    def _is_too_much(self, size: int) -> bool:
        return self._budget_bytes is not None and self.size_bytes + size > self._budget_bytes

    def _spill(self) -> None:
        self.spilled = True
        memory, self.descriptor = self.descriptor, self._open_file()
        try:
            copied = 0
            with self._failures():
                while copied < self.size_bytes:
                    copied += os.sendfile(self.descriptor, memory, copied, self.size_bytes - copied)
        finally:
            os.close(memory)

    def _open_file(self) -> int:
        with self._failures(), tempfile.TemporaryFile(buffering=0, dir=self._folder) as file:
            return os.dup(file.fileno())

    @contextmanager
    def _failures(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            where = f"the spill folder {self._folder}" if self.spilled else "shared memory"
            what = "is full" if error.errno in _FULL else f"cannot be written to: {error.strerror}"
            raise DataError(
                f"{where} {what}; {self.size_bytes:,} bytes of a dataset were written. Free some "
                "space, or choose another folder: DataContext.get_current().spill_folder = ..."
            ) from error


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, file: NamelessFile) -> int:
    """Write tables as one stream of Arrow's, and return how many rows they have.

    A stream and not a file of Arrow's: its dictionaries may differ from table to table.

    Args:
        tables: One at a time is asked for.
        schema: The columns of all of them.
        file: Where to.
    """
    writer = pa.ipc.new_stream(pa.PythonFile(file, mode="w"), schema)
    rows = 0
    for table in tables:
        writer.write_table(table)
        rows += table.num_rows
    writer.close()
    return rows


def _write_streams(tables: Iterable[pa.Table], file: NamelessFile) -> tuple[int, list[int]]:
    """Write tables, a stream for those in a row that have the same columns.

    Returns:
        How many rows they have, and where each stream begins.
    """
    rows = 0
    starts = []
    for schema, alike in itertools.groupby(tables, attrgetter("schema")):
        starts.append(file.size_bytes)
        rows += write_tables(alike, schema, file)
    if not starts:
        write_tables([], pa.schema([]), file)
    return rows, starts


def _write_joined(streams: NamelessFile, starts: list[int], file: NamelessFile, what: str) -> None:
    """Write what is in several streams as one, with columns that suit all of them.

    Only now are all types known. The streams are mapped: one piece at a time is in memory that
    cannot be taken back.

    Raises:
        SchemaMismatchError: A value does not fit in the type that its column gets.
    """
    content = _mapped(streams.descriptor)
    tables = [pa.ipc.open_stream(content.slice(start)).read_all() for start in starts]
    schema = common_schema(tables)
    pieces = (
        converted(pa.Table.from_batches([batch]), schema)
        for table in tables
        for batch in table.to_batches()
    )
    try:
        write_tables(pieces, schema, file)
    except SchemaMismatchError as error:
        raise SchemaMismatchError(f"{what}: {error}") from error.__cause__


def map_table(descriptor: int) -> pa.Table:
    """Return the table that was written to a descriptor, without copying it.

    The table needs the descriptor no longer: the memory is there for as long as anything refers
    to it.
    """
    return pa.ipc.open_stream(_mapped(descriptor)).read_all()


def _mapped(descriptor: int) -> pa.Buffer:
    # Arrow's own map, unlike Python's, can give back its copy of the descriptor before the memory.
    with pa.memory_map(f"/proc/self/fd/{descriptor}") as file:
        return file.read_buffer()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where bytes without a name are: a descriptor of a process.

    Attributes:
        boot_id: The machine since it was last started.
        pid: The process.
        began: When it began: its number may be another's by now.
        descriptor: The number of its descriptor.
        device: What it is, in two numbers: the descriptor's may be another file's by now.
        inode: The second one.
    """

    boot_id: str
    pid: int
    began: int
    descriptor: int
    device: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> _Place:
        """Return where a descriptor of this process is."""
        status = os.fstat(descriptor)
        pid = os.getpid()
        began = began_at(pid)
        assert began is not None, "this process is alive"
        return cls(_boot_id(), pid, began, descriptor, status.st_dev, status.st_ino)

    def open(self) -> int:
        """Return a descriptor of this process for the same.

        Raises:
            DataError: There is none any more, or not here.
        """
        gone = "a dataset that was kept in shared memory is out of reach"
        again = "materialize() it again"
        if self.boot_id != _boot_id():
            raise DataError(f"{gone}: it is on another host, or was before a restart; {again} here")
        if began_at(self.pid) != self.began:
            raise DataError(f"{gone}: process {self.pid}, which held it, has ended; {again}")
        try:
            return self._open()
        except FileNotFoundError:
            raise DataError(f"{gone}: process {self.pid} has closed it; {again}") from None
        except PermissionError as error:
            raise DataError(
                f"{gone}: process {self.pid}, which holds it, belongs to another user, or may not "
                f"be looked at; {again} in this process"
            ) from error

    def _open(self) -> int:
        # Found first, opened then: what is at the number by now may not like to be opened.
        found = os.open(f"/proc/{self.pid}/fd/{self.descriptor}", os.O_PATH | os.O_CLOEXEC)
        try:
            status = os.fstat(found)
            if (status.st_dev, status.st_ino) != (self.device, self.inode):
                raise FileNotFoundError
            return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(found)


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()


class SharedTable:
    """Rows in shared memory, or in a file without a name if they are too many for it.

    It is pickled as a reference, which processes of this host can follow for as long as the one
    that pickled it lives and has not closed it. They then hold the memory too.

    Attributes:
        rows: How many rows.
        size_bytes: How much they take.
        spilled: Whether they are in a file.
    """

    def __init__(self, place: _Place, rows: int, size_bytes: int, *, spilled: bool) -> None:
        self.rows = rows
        self.size_bytes = size_bytes
        self.spilled = spilled
        self._place = place
        self._descriptor: int | None = None
        self._closing: weakref.finalize[[int], SharedTable] | None = None
        self._table: pa.Table | None = None
        self._lock = threading.Lock()
        unlock_in_forks(self)

    @classmethod
    def write(
        cls,
        tables: Iterable[pa.Table],
        *,
        budget_bytes: int,
        spill_folder: str | os.PathLike[str] | None,
        what: str = "a dataset",
    ) -> SharedTable:
        """Write tables, one at a time.

        Where their types differ, all rows are written once more, when all types are known.

        Args:
            tables: The rows.
            budget_bytes: How much may be in memory; more than that goes to a file as a whole.
            spill_folder: Where the file is, though one does not see it; None: the temporary
                folder.
            what: What the rows are, for messages.

        Raises:
            DataError: There is no room for them.
            SchemaMismatchError: A value does not fit in the type that its column gets.
        """
        file = NamelessFile(budget_bytes, spill_folder)
        try:
            rows, starts = _write_streams(tables, file)
            if len(starts) > 1:
                streams, file = file, NamelessFile(budget_bytes, spill_folder)
                try:
                    _write_joined(streams, starts, file, what)
                finally:
                    os.close(streams.descriptor)
            place = _Place.of(file.descriptor)
        except BaseException:
            os.close(file.descriptor)
            raise
        shared = cls(place, rows, file.size_bytes, spilled=file.spilled)
        shared._take(file.descriptor)
        return shared

    def table(self) -> pa.Table:
        """Return the rows, mapped: memory is taken by what is read, once per host.

        Raises:
            DataError: They are out of reach.
        """
        with self._lock:
            if self._table is None:
                self._table = map_table(self._hold())
            return self._table

    def reachable(self) -> bool:
        """Return whether :meth:`table` would find it now; if it does, this process holds it."""
        try:
            with self._lock:
                self._hold()
        except DataError:
            return False
        return True

    def close(self) -> None:
        """Let go of the memory; what was mapped stays for as long as tables refer to it."""
        with self._lock:
            self._table = self._descriptor = None
            if self._closing is not None:
                self._closing()

    def _hold(self) -> int:
        if self._descriptor is None:
            self._take(self._place.open())
        assert self._descriptor is not None, "it was just taken"
        return self._descriptor

    def _take(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._closing = weakref.finalize(self, os.close, descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return _refer, (self._reference(),)

    def _reference(self) -> dict[str, Any]:
        place = self._place if self._descriptor is None else _Place.of(self._descriptor)
        return {
            "place": asdict(place),
            "rows": self.rows,
            "size_bytes": self.size_bytes,
            "spilled": self.spilled,
        }


def _refer(reference: dict[str, Any]) -> SharedTable:
    return SharedTable(**{**reference, "place": _Place(**reference["place"])})


def once_per_host(key: str, folder: Path, make: Callable[[], SharedTable]) -> SharedTable:
    """Return what the first process of this host that asked has made; others wait for it.

    If that one has ended, or closed it, the next one that asks makes it again.

    Args:
        key: What it is.
        folder: Where those who ask meet; a small file per key stays there.
        make: Makes it.
    """
    name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    descriptor = os.open(folder / f"{name}.shared", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel takes it from a maker that is killed
        with open(descriptor, "r+", encoding="utf-8", closefd=False) as file:
            shared = _referred_to(file.read())
            if shared is None:
                shared = make()
                file.seek(0)
                file.truncate()
                json.dump(shared._reference(), file)  # noqa: SLF001 - as pickled
        return shared
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for copies of the descriptor that forks have
        os.close(descriptor)


def _referred_to(text: str) -> SharedTable | None:
    try:
        shared = _refer(json.loads(text))
    except (ValueError, KeyError, TypeError):  # nobody was here, or was killed while writing it
        return None
    return shared if shared.reachable() else None
