"""A worker's way to the run's files where only the driver can reach them: two pipes, one call.

One call at a time travels over them: it is sent, and its answer read, before the next. Threads
wait for each other.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from minitrain._storage.file_calls import Body, Frames, call, value_of

__all__ = ["FileConnection", "connect", "connection", "is_connected"]

_READ_BYTES = 1 << 20


class FileConnection:
    """The worker's ends of the pipes.

    Args:
        read_fd: Where answers arrive; owned from here on.
        write_fd: Where calls go.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._frames = Frames()
        self._is_between_calls = True

    def call(self, operation: str, *arguments: Any, body: Body = b"") -> tuple[Any, Body]:
        """Have the driver do something, and return the value and the body of its answer.

        Raises:
            OSError: It failed there; or the driver is gone.
            RuntimeError: This process is not the worker itself.
        """
        if os.getpid() != self._pid:  # looked at first: a fork may have got the lock locked
            raise RuntimeError(
                f"the run's files are at the driver, and only the worker (process {self._pid}) can "
                f"reach them, not process {os.getpid()} that was forked from it: read a checkpoint "
                "in the worker, with Checkpoint.to_directory(), and use the copy here"
            )
        with self._lock:
            if not self._is_between_calls:
                raise OSError(
                    "the way to the run's files, which are at the driver, is blocked: an exception "
                    "from a signal handler had interrupted a call; the worker must be restarted"
                )
            self._is_between_calls = False
            self._send(call(operation, *arguments, body=body), body)
            head, found = self._receive()
            self._is_between_calls = True
        return value_of(head), found

    def _send(self, *parts: Body) -> None:
        unsent = [memoryview(part) for part in parts if part]
        while unsent:
            sent = os.writev(self._write_fd, unsent)
            while unsent and sent >= len(unsent[0]):
                sent -= len(unsent.pop(0))
            if sent:
                unsent[0] = unsent[0][sent:]

    def _receive(self) -> tuple[dict[str, Any], Body]:
        bodies = []
        while True:
            data = os.read(self._read_fd, _READ_BYTES)
            if not data:
                raise ConnectionAbortedError("the driver, which has the run's files, is gone")
            for part in self._frames.feed(data):
                bodies.append(part.body)
                if part.is_last:
                    return part.head, bodies[0] if len(bodies) == 1 else b"".join(bodies)

    def close(self) -> None:
        """Close both ends."""
        os.close(self._read_fd)
        os.close(self._write_fd)


_connection: FileConnection | None = None


def connect(read_fd: int, write_fd: int) -> None:
    """Say how this process reaches the run's files."""
    global _connection  # noqa: PLW0603 - a worker belongs to one run
    _connection = FileConnection(read_fd, write_fd)


def is_connected() -> bool:
    """Return whether this process, or the one it was forked from, is such a worker."""
    return _connection is not None


def connection() -> FileConnection:
    """Return how this process reaches the run's files.

    Raises:
        RuntimeError: It does not.
    """
    if _connection is None:
        raise RuntimeError(
            f"the run's files are at the driver, and process {os.getpid()} is none of its workers: "
            "read a checkpoint in the worker, with Checkpoint.to_directory(), and use the copy here"
        )
    return _connection
