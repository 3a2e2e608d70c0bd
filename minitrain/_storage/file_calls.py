"""What a worker asks of files that only the driver can reach, and the answers, as bytes.

A frame is a head, which is JSON, and a body, which is what a file holds or is to hold::

    | length of the head | length of the body | head | body |

The head of a call is the operation's name with its arguments; that of an answer is the value, or
the error number, text and path of an ``OSError``.
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["PIECE_BYTES", "Body", "Frames", "Part", "answer", "call", "failure", "value_of"]

PIECE_BYTES = 8 << 20
"""The most that a body holds, so that what is under way stays small in every process."""

Body: TypeAlias = bytes | bytearray | memoryview

_LENGTHS = struct.Struct("<II")


def call(operation: str, *arguments: Any, body: Body = b"") -> bytes:
    """Return the beginning of a call, which its body is to follow."""
    return _beginning([operation, *arguments], body)


def answer(value: Any, body: Body = b"") -> bytes:
    """Return the beginning of an answer, which its body is to follow."""
    return _beginning({"value": value}, body)


def failure(error: Exception) -> bytes:
    """Return the answer that something failed."""
    number = getattr(error, "errno", None) or errno.EIO
    text = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    path = getattr(error, "filename", None)
    return _beginning({"error": [number, text, None if path is None else str(path)]}, b"")


def _beginning(head: Any, body: Body) -> bytes:
    data = json.dumps(head).encode()
    return _LENGTHS.pack(len(data), len(body)) + data


def value_of(head: dict[str, Any]) -> Any:
    """Return the value in an answer's head.

    Raises:
        OSError: It is not a value but an error, which keeps its number, and so its class.
    """
    if "error" in head:
        number, text, path = head["error"]
        raise OSError(number, text, path)
    return head["value"]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a frame.

    Attributes:
        head: The frame's head.
        body: Some of its body; all together are the body.
        is_last: Whether nothing more of the frame follows.
    """

    head: Any
    body: Body
    is_last: bool


class Frames:
    """Finds frames in the bytes that arrive; a body is not kept until it is complete."""

    def __init__(self) -> None:
        self._beginning = bytearray()
        self._head: Any = None
        self._missing = 0

    def feed(self, data: bytes) -> Iterator[Part]:
        """Take some bytes, and return what they are of frames, in order."""
        view = memoryview(data)
        while view:
            if self._missing:
                part, view = view[: self._missing], view[self._missing :]
                self._missing -= len(part)
                yield Part(self._head, part, not self._missing)
                continue
            view = self._read_beginning(view)
            if not self._beginning and not self._missing:
                yield Part(self._head, b"", is_last=True)

    def _read_beginning(self, view: memoryview) -> memoryview:
        """Take what belongs to the beginning of a frame, and return the rest."""
        wanted = _LENGTHS.size
        if len(self._beginning) >= wanted:
            wanted += _LENGTHS.unpack_from(self._beginning)[0]
        taken = wanted - len(self._beginning)
        self._beginning += view[:taken]
        if len(self._beginning) == wanted > _LENGTHS.size:
            self._head = json.loads(self._beginning[_LENGTHS.size :])
            self._missing = _LENGTHS.unpack_from(self._beginning)[1]
            self._beginning.clear()
        return view[taken:]
