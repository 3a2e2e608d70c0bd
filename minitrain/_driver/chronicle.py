"""Keeps the run's record, and tells the user, where the course of the run changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from minitrain._driver.state import (
    AttemptFailed,
    Event,
    InterruptRequested,
    ResizePossible,
    Starting,
    State,
    WorkersGone,
    WorkersReturned,
)
from minitrain._logging import logger
from minitrain._storage.record import Attempt, RunRecord, now

__all__ = ["Chronicle"]


class Chronicle:
    """Writes down what becomes of every attempt.

    Args:
        record: The run's record.
        save: Writes it where it belongs.
    """

    def __init__(self, record: RunRecord, save: Callable[[], object]) -> None:
        self._attempts = record.attempts
        self._save = save

    def begin(self, num_workers: int) -> None:
        """Note that an attempt begins."""
        self._attempts.append(Attempt(num_workers))
        self._save()

    def name_workers(self, hostname: Callable[[int], str], pids: Mapping[int, int]) -> None:
        """Note which processes there are, by rank, for whoever wants to look at them."""
        self._attempts[-1].world_size = len(pids)
        self._attempts[-1].workers = [
            {"rank": rank, "pid": pid, "hostname": hostname(rank)}
            for rank, pid in sorted(pids.items())
        ]
        self._save()

    def note(self, event: Event, state: State) -> None:
        """Note what happened to the attempt.

        Args:
            event: What happened.
            state: What the run is in now.
        """
        attempt = self._attempts[-1]
        match event:
            case AttemptFailed(error=error):
                attempt.outcome = attempt.outcome or str(error).splitlines()[0]
            case WorkersReturned():
                attempt.outcome = "returned"
            case ResizePossible(num_workers=num_workers):
                attempt.outcome = f"ended for another with {num_workers} workers"
            case InterruptRequested():
                attempt.outcome = "interrupted"
            case WorkersGone():
                attempt.ended = now()
                self._save()
                if isinstance(state, Starting):
                    again = f"starting again with {state.num_workers} workers"
                    logger.warning("%s; %s", attempt.outcome, again)
            case _:
                pass
