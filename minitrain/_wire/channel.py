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
import threading
from collections import deque
from dataclasses import replace
from typing import Any

__all__ = ["Channel", "ChannelClosed"]

_HEADER = struct.Struct("<QI")
_READ_BYTES = 1 << 17


class ChannelClosed(Exception):  # noqa: N818 - an event, not an error
    """The other end is gone."""


class Channel:
    """One end of a two-way stream of messages.

    Args:
        read_fd: Where the other end's messages arrive; owned from here on.
        write_fd: Where ours go; may be the same.
        received: What has been read from there already.
    """

    def __init__(self, read_fd: int, write_fd: int, received: bytes = b"") -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._received = bytearray(received)
        self._lock = threading.RLock()  # a driver's heart beats in a thread of its own

    @property
    def unsent_bytes(self) -> int:
        """How much waits until the other end reads."""
        return self._unsent_bytes

    def send(self, message: Any, data: bytes | memoryview = b"") -> None:
        """Send a message, now or as soon as the descriptor is writable.

        Args:
            message: The message.
            data: What its field ``data`` is to be where it arrives; it is not copied on the way to
                the kernel, and the caller may change it afterwards.

        Raises:
            ChannelClosed: The other end is gone.
        """
        pickled = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._send(_HEADER.pack(len(pickled), len(data)) + pickled, data)

    def send_bytes(self, data: bytes) -> None:
        """Send bytes that are no message of ours, to an end that expects them.

        Raises:
            ChannelClosed: The other end is gone.
        """
        self._send(data)

    def _send(self, *parts: bytes | memoryview) -> None:
        with self._lock:
            sent = 0
            if not self._unsent:
                try:
                    sent = os.writev(self.write_fd, parts)
                except BlockingIOError:
                    pass
                except OSError as error:
                    raise ChannelClosed from error
            for part in parts:
                if sent < len(part):
                    self._unsent.append(memoryview(bytes(part[sent:])))
                    self._unsent_bytes += len(part) - sent
                sent = max(0, sent - len(part))

    def flush(self) -> None:
        """Send what waits, as far as that goes without waiting.

        Raises:
            ChannelClosed: The other end is gone.
        """
        with self._lock:
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

    def receive_bytes(self, buffer: memoryview) -> memoryview:
        """Return some of the bytes that have arrived, unread; none if there are none.

        Args:
            buffer: Where they are put.

        Raises:
            ChannelClosed: The other end is gone, and all it sent has been returned before.
        """
        try:
            size = os.readv(self.read_fd, [buffer])
        except BlockingIOError:
            return buffer[:0]
        except OSError as error:
            raise ChannelClosed from error
        if not size:
            raise ChannelClosed
        return buffer[:size]

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
            pickled_bytes, data_bytes = _HEADER.unpack_from(view, position)
            begin = position + _HEADER.size
            middle = begin + pickled_bytes
            end = middle + data_bytes
            if len(view) < end:
                break
            message = pickle.loads(view[begin:middle])
            data = bytes(view[middle:end])
            messages.append(replace(message, data=data) if data else message)
            position = end
        view.release()
        del self._received[:position]
        return messages

    def close(self) -> None:
        """Close this end; the other one reads the end of the stream."""
        with self._lock:
            os.close(self.read_fd)
            if self.write_fd != self.read_fd:
                os.close(self.write_fd)
            self.read_fd = self.write_fd = -1  # another file may get the number
            self._unsent.clear()
