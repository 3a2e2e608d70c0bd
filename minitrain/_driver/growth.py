"""Whether a run should start again with more workers. Pure but for the room it asks for."""

from __future__ import annotations

import math
from collections.abc import Callable

from minitrain.config import ScalingConfig

__all__ = ["Growth"]


class Growth:
    """Looks for room for more workers whenever there is a checkpoint to start them from.

    Args:
        scaling: How many are wanted, and how often to look.
    """

    def __init__(self, scaling: ScalingConfig) -> None:
        self._max_workers = scaling.max_workers
        self._interval_s = scaling.elastic_resize_monitor_interval_s
        self._num_workers = scaling.max_workers
        self._num_committed = 0
        self._looked_s = 0.0

    def begin(self, num_workers: int, num_committed: int) -> None:
        """Turn to another attempt.

        Args:
            num_workers: Its workers.
            num_committed: How many checkpoints the run has committed.
        """
        self._num_workers = num_workers
        self._num_committed = num_committed

    def hurry(self) -> None:
        """Look at the next checkpoint: there is a host more."""
        self._looked_s = -math.inf

    def look(self, num_committed: int, now_s: float, fits: Callable[[], int]) -> int | None:
        """Return with how many workers to start again; None to go on.

        Args:
            num_committed: How many checkpoints the run has committed.
            now_s: The time, on the monotonic clock.
            fits: Returns how many workers there is room for.
        """
        if self._num_workers >= self._max_workers or num_committed == self._num_committed:
            return None
        if now_s < self._looked_s + self._interval_s:
            return None  # the next checkpoint is an occasion as well
        self._num_committed = num_committed
        self._looked_s = now_s
        room = fits()
        return room if room > self._num_workers else None
