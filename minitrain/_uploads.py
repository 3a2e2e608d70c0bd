"""Writes a worker's checkpoints while it trains on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minitrain._storage.disk import FileEntry

__all__ = ["Upload", "Uploads", "out_of_reach"]

_IN_FLIGHT = 2
"""So many checkpoints may be on their way; the report of another one waits for the first."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One checkpoint on its way.

    Attributes:
        index: Of its report.
        write: Writes the files and returns what was written.
    """

    index: int
    write: Callable[[], tuple[FileEntry, ...]]


class Uploads:
    """A thread that carries out uploads, one after the other.

    Args:
        done: Called in the thread with the report's index and the files, or the problem.
    """

    def __init__(
        self, done: Callable[[int, tuple[FileEntry, ...], Exception | None], object]
    ) -> None:
        self._done = done
        self._slots = threading.BoundedSemaphore(_IN_FLIGHT)
        self._queue: queue.SimpleQueue[Upload | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def make_room(self) -> None:
        """Wait until another upload may begin."""
        self._slots.acquire()

    def give_room_back(self) -> None:
        """Undo :meth:`make_room` for an upload that was not begun."""
        self._slots.release()

    def begin(self, upload: Upload) -> None:
        """Carry out an upload for which there is room."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()
        self._queue.put(upload)

    def close(self) -> None:
        """Wait until every upload is over."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (upload := self._queue.get()) is not None:
            files: tuple[FileEntry, ...] = ()
            problem = None
            try:
                files = upload.write()
            except Exception as error:  # noqa: BLE001 - it is raised in the next report()
                problem = error
            self._slots.release()
            self._done(upload.index, files, problem)


def out_of_reach(folder: Path) -> Path:
    """Take a directory that was given away to where nobody else touches it, and return it.

    Its owner may remove or fill it again meanwhile.
    """
    aside = folder.with_name(f".{folder.name}.given")
    number = 0
    while aside.exists():
        number += 1
        aside = folder.with_name(f".{folder.name}.given-{number}")
    return folder.rename(aside)
