"""Does the driver's slow work with storage beside its one wait, in order.

What a local disk takes is a matter of milliseconds and is done on the spot. A request to an object
store may take seconds, or, where the network is down, minutes of trying again: meanwhile workers
report, and Ctrl-C must work.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

__all__ = ["Clerk", "Outcome"]

T = TypeVar("T")
Outcome: TypeAlias = T | Exception
_Job: TypeAlias = tuple[Callable[[], Any], Callable[[Any], object]]


class Clerk:
    """Carries out work in the order it was given, and says in the driver's thread what came of it.

    Args:
        waits: Whether work is done in a thread; otherwise at once, in the caller's.
    """

    def __init__(self, *, waits: bool) -> None:
        self._waits = waits
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._thread: threading.Thread | None = None
        self._unfinished = 0
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor that is readable when :meth:`deliver` has something to do."""
        return self._descriptor

    def do(self, work: Callable[[], T], then: Callable[[Outcome[T]], object]) -> None:
        """Do some work; ``then`` is called with its result, or with the exception it raised."""
        self._unfinished += 1
        if not self._waits:
            self._done.append((then, _outcome(work)))
            self._deliver_one()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="storage", daemon=True)
            self._thread.start()
        self._jobs.put((work, then))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, then = job
            self._done.append((then, _outcome(work)))
            os.eventfd_write(self._descriptor, 1)

    def deliver(self) -> None:
        """Say what came of work that is done."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)
        while self._done:
            self._deliver_one()

    def _deliver_one(self) -> None:
        then, outcome = self._done.popleft()
        self._unfinished -= 1
        then(outcome)

    def finish(self, timeout_s: float) -> bool:
        """Wait until all work is done and said, and return whether it is."""
        deadline_s = time.monotonic() + timeout_s
        waiting = select.poll()  # descriptors may be many, and select() takes only the first 1,024
        waiting.register(self._descriptor, select.POLLIN)
        while self._unfinished:
            left_s = max(0.0, deadline_s - time.monotonic())
            if not waiting.poll(1000 * left_s):
                return False
            self.deliver()
        return True

    def close(self) -> None:
        """End the thread after the work it is at."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
        os.close(self._descriptor)


def _outcome(work: Callable[[], T]) -> Outcome[T]:
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - handed to whoever asked for the work
        return error
