"""Ctrl-C and SIGTERM while a run is under way: told to the one wait, and put back afterwards."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

from minitrain._storage.retry import stop_retrying

__all__ = ["Interrupts"]

_PATIENCE = 2
"""A Ctrl-C beyond this many raises KeyboardInterrupt on the spot."""


class Interrupts:
    """A context in which Ctrl-C and SIGTERM make a descriptor readable instead of ending all.

    Only the main thread can have signals; in another one nothing is installed.
    """

    def __init__(self) -> None:
        self.count = 0
        self._arrived: deque[signal.Signals] = deque()
        self._descriptor = -1
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def fileno(self) -> int:
        """Return the descriptor that is readable after a signal."""
        return self._descriptor

    def __enter__(self) -> Self:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        os.close(self._descriptor)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            self.count += 1
            stop_retrying()
            if self.count > _PATIENCE:
                raise KeyboardInterrupt
        self._arrived.append(signal.Signals(signum))
        os.eventfd_write(self._descriptor, 1)

    def take(self) -> list[signal.Signals]:
        """Return the signals that have arrived, and make the descriptor unreadable again."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)
        arrived = list(self._arrived)
        self._arrived.clear()
        return arrived
