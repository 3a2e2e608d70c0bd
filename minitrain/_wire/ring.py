"""A worker's result queue: a ring of bytes in shared memory, one writer, one reader.

The bytes lie in a ``memfd`` that both processes map; it has no name, so nothing is left in
``/dev/shm`` however they end. Two counters of the kernel (``eventfd``) order the two sides, and
nothing else is shared: *filled* counts the parts written and not yet read, *freed* the bytes
given back. A write is published by a system call, so the reader never sees half of one (also
not on processors that reorder stores), and all that was published outlives a killed writer.

A message larger than a part is written as several; the reader puts them together::

    | length, with a bit for "more follows" | bytes | length | bytes | ...     (wraps around)
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import threading

__all__ = ["Ring"]

_LENGTH = struct.Struct("<I")
_MORE = 1 << 31


class Ring:
    """A bounded queue of messages from one process to another.

    Args:
        size_bytes: Room for messages; a full ring makes the writer wait.
    """

    def __init__(self, size_bytes: int = 8 << 20) -> None:
        self._size = size_bytes
        self._part = size_bytes // 4
        memory = os.memfd_create("minitrain-ring", os.MFD_CLOEXEC)
        try:
            os.truncate(memory, size_bytes)
            self._map = mmap.mmap(memory, size_bytes)
        finally:
            os.close(memory)
        self._filled = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._freed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._free = size_bytes
        self._position = (
            0  # of the next byte: the writer's in the writer, the reader's in the reader
        )
        self._pieces: list[bytes] = []
        self._lock = threading.Lock()  # a train function may report from several threads

    def fileno(self) -> int:
        """Return the descriptor that is readable while messages wait."""
        return self._filled

    def put(self, message: bytes) -> None:
        """Write one message; waits while there is no room, for as long as the reader takes.

        The wait ends with the reader: a worker dies with its agent.
        """
        view = memoryview(message)
        with self._lock:
            while len(view) > self._part:
                self._put_part(view[: self._part], _MORE)
                view = view[self._part :]
            self._put_part(view, 0)

    def _put_part(self, part: memoryview, more: int) -> None:
        needed = _LENGTH.size + len(part)
        while self._free < needed:
            select.select([self._freed], [], [])
            self._free += os.eventfd_read(self._freed)
        self._write(_LENGTH.pack(len(part) | more))
        self._write(part)
        self._free -= needed
        os.eventfd_write(self._filled, 1)

    def _write(self, data: bytes | memoryview) -> None:
        first = min(len(data), self._size - self._position)
        self._map[self._position : self._position + first] = bytes(data[:first])
        if first < len(data):
            self._map[: len(data) - first] = bytes(data[first:])
        self._position = (self._position + len(data)) % self._size

    def take(self) -> list[bytes]:
        """Return every message that is complete, without waiting."""
        try:
            parts = os.eventfd_read(self._filled)
        except BlockingIOError:
            return []
        messages = []
        freed = 0
        for _ in range(parts):
            (header,) = _LENGTH.unpack(self._read(_LENGTH.size))
            length = header & ~_MORE
            self._pieces.append(self._read(length))
            freed += _LENGTH.size + length
            if not header & _MORE:
                messages.append(
                    self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                )
                self._pieces = []
        os.eventfd_write(self._freed, freed)
        return messages

    def _read(self, length: int) -> bytes:
        first = min(length, self._size - self._position)
        data = self._map[self._position : self._position + first]
        if first < length:
            data += self._map[: length - first]
        self._position = (self._position + length) % self._size
        return data

    def close(self) -> None:
        """Give back the memory and the counters of this process's end."""
        self._map.close()
        os.close(self._filled)
        os.close(self._freed)
