"""What a pool and its processes say to each other: single bytes, each with a descriptor at most.

::

    the pool                            a process
    SETUP   (pickled: how to begin) -->
    TABLE   (mapped)                -->
                                    <-- TABLE  (mapped), as often as the function yields one
                                    <-- END, or RAISED (pickled)

What is large lies in memory without a name and is mapped by the other one, never copied through
the socket.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import pyarrow as pa

from minitrain.data.processes.shared import NamelessFile, map_table, write_tables
from minitrain.exceptions import RemoteError

__all__ = [
    "END",
    "RAISED",
    "SETUP",
    "TABLE",
    "Channel",
    "HungUpError",
    "Raised",
    "Setup",
    "describe",
    "revive",
]

SETUP, TABLE, END, RAISED = b"S", b"T", b"E", b"R"

_OWN_FOLDER = f"{Path(__file__).parent}{os.sep}"
_MOST_CAUSES = 10


class HungUpError(Exception):
    """The other side is gone."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a process begins.

    Attributes:
        sys_path: Where it finds modules.
        python_path: The owner's ``PYTHONPATH``.
        function: What it calls, pickled.
        name: What that is called.
    """

    sys_path: list[str]
    python_path: str | None
    function: bytes
    name: str


class Channel:
    """One end of a socket that keeps messages apart.

    Args:
        end: The socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, kind: bytes, value: Any = None) -> None:
        """Send a message; tables go as they are, everything else is pickled.

        Raises:
            HungUpError: Nobody is there.
            DataError: There is no room for it.
        """
        if kind == END:
            self._send(kind, [])
            return
        file = NamelessFile(None, None)
        try:
            if kind == TABLE:
                write_tables([value], value.schema, file)
            else:
                file.write(pickle.dumps(value))
            self._send(kind, [file.descriptor])
        finally:
            os.close(file.descriptor)

    def receive(self) -> tuple[bytes, Any]:
        """Return a kind and a value.

        Raises:
            HungUpError: Nobody is there.
        """
        try:
            kind, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError as error:
            raise HungUpError from error
        if not kind:
            raise HungUpError
        if not descriptors:
            return kind, None
        try:
            return kind, _read(kind, descriptors[0])
        finally:
            os.close(descriptors[0])

    def wait_for_end(self, timeout_s: float | None = None) -> bool:
        """Wait until the other side has hung up, and return whether it has.

        Args:
            timeout_s: How long at most; None: for ever.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def hang_up(self, *, both_ways: bool) -> None:
        """Let the other side know that nothing follows, or this side's receiver as well."""
        with suppress(OSError):  # it was the first to do so
            self._socket.shutdown(socket.SHUT_RDWR if both_ways else socket.SHUT_WR)

    def close(self) -> None:
        """Close this process's end, which does not close copies of it in others."""
        self._socket.close()

    def _send(self, kind: bytes, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._socket, [kind], descriptors)
        except ConnectionError as error:
            raise HungUpError from error


def _read(kind: bytes, descriptor: int) -> Any:
    if kind == TABLE:
        return map_table(descriptor)
    with pa.memory_map(f"/proc/self/fd/{descriptor}") as file:
        return pickle.loads(file.read_buffer())


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception that travels.

    Attributes:
        pickled: The exception; None if it cannot be pickled.
        type_name: Its class.
        message: Its text.
        frames: Where it was raised; empty if only this package's code was involved.
        cause: What it was raised from.
    """

    pickled: bytes | None
    type_name: str
    message: str
    frames: str
    cause: Raised | None


def describe(error: BaseException, depth: int = 0) -> Raised:
    """Return an exception, and what it was raised from, as something that can be pickled."""
    linked = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    kind = type(error)
    frames = _frames(error)
    return Raised(
        pickled=_pickled(error),
        type_name=f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
        message=_text(error),
        frames=f"In process {os.getpid()} of a pool:\n{frames}" if frames else "",
        cause=None if linked is None or depth == _MOST_CAUSES else describe(linked, depth + 1),
    )


def revive(raised: Raised) -> Exception:
    """Return the exception again, or a stand-in, with its frames as a note."""
    error: object = None
    if raised.pickled is not None:
        with suppress(Exception):  # whatever a stranger's class does, the error must arrive
            error = pickle.loads(raised.pickled)
    # To exit is a process's own business: raised here it would end this one.
    if not isinstance(error, Exception):
        error = RemoteError(raised.type_name, raised.message)
    if raised.frames:
        error.add_note(raised.frames)
    if raised.cause is not None:
        error.__cause__ = revive(raised.cause)
    return error


def _pickled(error: BaseException) -> bytes | None:
    try:
        pickled: bytes = cloudpickle.dumps(error)
    except Exception:  # noqa: BLE001 - whatever a stranger's class does, the error must arrive
        return None
    return pickled


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as own:  # noqa: BLE001 - a stranger's __str__; the error must arrive
        return f"(its text cannot be had: {type(own).__name__})"


def _frames(error: BaseException) -> str:
    """Return the frames below this package's."""
    frames = traceback.extract_tb(error.__traceback__)
    while frames and frames[0].filename.startswith(_OWN_FOLDER):
        del frames[0]
    return "".join(traceback.format_list(frames)).rstrip()
