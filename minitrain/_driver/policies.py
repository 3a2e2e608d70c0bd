"""Decides whether a failed attempt is followed by another one. Pure: no clocks, no processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from minitrain.exceptions import TrainingFailedError, WorkerGroupError

__all__ = ["Decision", "FailurePolicy", "MaxFailures", "Retry"]


@dataclass(frozen=True, slots=True)
class Retry:
    """Start the next attempt with this many workers."""

    num_workers: int


Decision: TypeAlias = Retry | Literal["raise"]


class FailurePolicy(Protocol):
    """Answers one question: what now?"""

    def decide(self, attempt: int, error: TrainingFailedError) -> Decision:
        """Return what follows the failure of an attempt."""


@dataclass(frozen=True, slots=True)
class MaxFailures:
    """Retries failures of workers up to a limit.

    Attributes:
        limit: How many failures are followed by another attempt; -1: all.
        num_workers: Workers of every attempt.
    """

    limit: int
    num_workers: int

    def decide(self, attempt: int, error: TrainingFailedError) -> Decision:
        """Return what follows the failure of an attempt."""
        if not isinstance(error, WorkerGroupError):
            return "raise"
        if self.limit != -1 and attempt >= self.limit:
            return "raise"
        return Retry(self.num_workers)
