"""Decides whether a failed attempt is followed by another one. Pure: no clocks, no processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from minitrain.exceptions import PreemptionError, TrainingFailedError, WorkerGroupError

__all__ = ["NOTHING", "Budget", "Decision", "Retry", "Spent"]


@dataclass(frozen=True, slots=True)
class Spent:
    """How much of a run's budget is gone.

    Attributes:
        failures: Attempts that failed.
        preemptions: Attempts that ended because their machine was taken away.
    """

    failures: int = 0
    preemptions: int = 0


NOTHING = Spent()


@dataclass(frozen=True, slots=True)
class Retry:
    """Start the next attempt.

    Attributes:
        num_workers: With this many workers.
        spent: What is gone of the budget then.
    """

    num_workers: int
    spent: Spent


Decision: TypeAlias = Retry | Literal["raise"]


@dataclass(frozen=True, slots=True)
class Budget:
    """How often a run may start again.

    Attributes:
        max_failures: How many failures are followed by another attempt; -1: all.
        max_preemptions: How many preemptions are; -1: all.
        min_workers: The fewest workers to start with.
    """

    max_failures: int
    max_preemptions: int
    min_workers: int

    def decide(
        self, spent: Spent, num_workers: int, error: TrainingFailedError, fits: int
    ) -> Decision:
        """Return what follows the failure of an attempt.

        Args:
            spent: What was gone of the budget before.
            num_workers: How many workers the attempt had.
            error: How it failed.
            fits: How many workers there is room for now, at most as many as were asked for.
        """
        if fits < self.min_workers:
            return "raise"
        if isinstance(error, PreemptionError):
            if _is_over(spent.preemptions, self.max_preemptions):
                return "raise"
            return Retry(fits, replace(spent, preemptions=spent.preemptions + 1))
        if not isinstance(error, WorkerGroupError):
            return "raise"
        if fits < num_workers:  # it lost what it ran on: not a failure of the training
            return Retry(fits, spent)
        if _is_over(spent.failures, self.max_failures):
            return "raise"
        return Retry(fits, replace(spent, failures=spent.failures + 1))


def _is_over(count: int, limit: int) -> bool:
    return limit != -1 and count >= limit
