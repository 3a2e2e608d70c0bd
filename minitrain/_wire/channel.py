"""Messages over a pair of file descriptors that somebody inherited. Nothing is opened here.

A message is an object pickled by its sender; pickles are safe here because only the process
that started the other end can hold this one. Sending never waits: what the kernel does not take
at once is kept and sent when the descriptor is writable, so that two ends which both have much
to say cannot lock each other up.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections import deque
from typing import Any

__all__ = ["Channel", "ChannelClosed"]

_HEADER = struct.Struct("<Q")
_READ_BYTES = 1 << 20


class ChannelClosed(Exception):  # noqa: N818 - an event, not an error
    """The other end is gone."""


class Channel:
    """One end of a two-way stream of messages.

    Args:
        read_fd: Where the other end's messages arrive; owned from here on.
        write_fd: Where ours go; may be the same.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._received = bytearray()

    @property
    def unsent_bytes(self) -> int:
        """How much waits until the other end reads."""
        return self._unsent_bytes

    def send(self, message: Any) -> None:
        """Send a message, now or as soon as the descriptor is writable.

        Raises:
            ChannelClosed: The other end is gone.
        """
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._unsent.append(memoryview(_HEADER.pack(len(data)) + data))
        self._unsent_bytes += _HEADER.size + len(data)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as that goes without waiting.

        Raises:
            ChannelClosed: The other end is gone.
        """
        while self._unsent:
            try:
                sent = os.write(self.write_fd, self._unsent[0])
            except BlockingIOError:
                return
            except OSError as error:
                raise ChannelClosed from error
            self._unsent_bytes -= sent
            if sent == len(self._unsent[0]):
                self._unsent.popleft()
            else:
                self._unsent[0] = self._unsent[0][sent:]

    def receive(self) -> list[Any]:
        """Return every message that has arrived whole, without waiting.

        Raises:
            ChannelClosed: The other end is gone, and all it sent has been returned before.
        """
        closed = not self._fill()
        messages = self._whole_messages()
        if closed and not messages:
            raise ChannelClosed
        return messages

    def _fill(self) -> bool:
        """Read what is there; return False at the end of the stream."""
        while True:
            try:
                data = os.read(self.read_fd, _READ_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._received += data
            if len(data) < _READ_BYTES:
                return True

    def _whole_messages(self) -> list[Any]:
        messages = []
        position = 0
        view = memoryview(self._received)
        while len(view) - position >= _HEADER.size:
            (length,) = _HEADER.unpack_from(view, position)
            end = position + _HEADER.size + length
            if len(view) < end:
                break
            messages.append(pickle.loads(view[position + _HEADER.size : end]))
            position = end
        view.release()
        del self._received[:position]
        return messages

    def close(self) -> None:
        """Close this end; the other one reads the end of the stream."""
        os.close(self.read_fd)
        if self.write_fd != self.read_fd:
            os.close(self.write_fd)
        self._unsent.clear()
