"""Locks that forks of this process do not inherit as they were held."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

__all__ = ["unlock_in_forks"]

_locking: weakref.WeakSet[Any] = weakref.WeakSet()


def unlock_in_forks(owner: Any) -> None:
    """Give an object another ``_lock`` in a fork of this process.

    The threads of this process are not there in a fork, such as a process of torch's data loader:
    what one of them held would be held for ever.
    """
    _locking.add(owner)


def _unlock() -> None:
    for owner in tuple(_locking):
        owner._lock = threading.Lock()  # noqa: SLF001 - asked for


os.register_at_fork(after_in_child=_unlock)
