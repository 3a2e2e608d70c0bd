"""Ctrl-C while a run is under way: counted, told to the one wait, and put back afterwards."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Interrupts"]

_PATIENCE = 2
"""A Ctrl-C beyond this many raises KeyboardInterrupt on the spot."""


class Interrupts:
    """A context in which Ctrl-C makes a descriptor readable instead of raising.

    Only the main thread can have signals; in another one nothing is installed.
    """

    def __init__(self) -> None:
        self.count = 0
        self._descriptor = -1
        self._before: signal._HANDLER = None
        self._installed = False

    def fileno(self) -> int:
        """Return the descriptor that is readable after a Ctrl-C."""
        return self._descriptor

    def __enter__(self) -> Self:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)
        os.close(self._descriptor)

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > _PATIENCE:
            raise KeyboardInterrupt
        os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Make the descriptor unreadable again."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)
