"""Which ranks have gone silent, and which of them are to blame. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from minitrain._os.stacks import waits_in_collective

__all__ = ["Silence", "guilty_ranks", "why_silent"]


class Silence:
    """When every rank was last heard of.

    Args:
        timeout_s: How long a rank may say nothing; None: for ever.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._heard_s: dict[int, float] = {}
        self._excused: frozenset[int] = frozenset()

    def begin(self, world_size: int, now_s: float) -> None:
        """Turn to another attempt, whose train function begins now."""
        self._heard_s = dict.fromkeys(range(world_size), now_s)
        self._excused = frozenset()

    def heard(self, rank: int, now_s: float) -> None:
        """Note that a rank has said something."""
        if rank in self._heard_s:
            self._heard_s[rank] = now_s

    def due_s(self, excused: Collection[int]) -> float:
        """Return when the next rank will have been silent for too long; infinity if none."""
        if self.timeout_s is None:
            return math.inf
        times = (at_s for rank, at_s in self._heard_s.items() if rank not in excused)
        return min(times, default=math.inf) + self.timeout_s

    def of(self, excused: Collection[int], now_s: float) -> list[int]:
        """Return the ranks that have been silent for too long.

        Args:
            excused: Those that need not say anything.
            now_s: The time, on the monotonic clock.
        """
        for rank in self._excused.difference(excused):
            self.heard(rank, now_s)  # it need not answer for the time that others took
        self._excused = frozenset(excused)
        if now_s < self.due_s(excused):
            return []
        assert self.timeout_s is not None
        return [
            rank
            for rank, at_s in self._heard_s.items()
            if rank not in excused and now_s >= at_s + self.timeout_s
        ]


def guilty_ranks(
    silent: Collection[int],
    stacks: Mapping[int, str],
    writing: Collection[int] = (),
    excused: Collection[int] = (),
) -> list[int]:
    """Return the silent ranks that others wait for.

    One that stands in a collective of torch's waits itself, if any other does not: perhaps one that
    was heard of a moment later than those that wait, and is not silent for as long. One that writes
    a checkpoint may take as long as it needs, unless it was stopped and will never be done.

    Args:
        silent: Ranks that have been silent for too long.
        stacks: What each rank is at.
        writing: Those that are writing a checkpoint.
        excused: Those that need not say anything.
    """
    due = [rank for rank in silent if rank not in writing or why_silent(stacks.get(rank, ""))]
    guilty = [rank for rank in due if not waits_in_collective(stacks.get(rank, ""))]
    if due and not guilty:
        others = stacks.keys() - {*silent, *writing, *excused}
        guilty = [rank for rank in others if not waits_in_collective(stacks[rank])]
    return sorted(guilty or due)


def why_silent(stack: str) -> str:
    """Return what a worker's stacks say of its silence, beyond where it stands."""
    header = stack.split("\n", 1)[0]
    return "it was stopped (SIGSTOP)" if "stopped" in header else ""
