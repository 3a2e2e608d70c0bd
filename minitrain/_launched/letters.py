"""What ranks say to each other beside what workers and driver do, in the order it is said.

::

rank 0                       every other rank
  Look        ------------>    is there this file?
              <------------  Present
  RunTold     ------------>    or Refused
              <-----------   SignalSensed, if it is sent SIGTERM
  Ended       ------------>
              <------------  Farewell
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Ended", "Farewell", "Look", "Present", "Refused", "RunTold", "SignalSensed"]


@dataclass(frozen=True, slots=True)
class Look:
    """Look for a file that rank 0 has just written where the run is to be; None: nowhere."""

    path: str | None


@dataclass(frozen=True, slots=True)
class Present:
    """A rank is there.

    Attributes:
        hostname: Its host.
        address: Where other hosts reach it.
        pid: Its process.
        began: When that began, in the kernel's ticks.
        sees: Whether it has found the file.
    """

    hostname: str
    address: str
    pid: int
    began: int | None
    sees: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing is trained, for this reason."""

    error: Exception


@dataclass(frozen=True, slots=True)
class RunTold:
    """What rank 0 knows of the run, and the others have to.

    Attributes:
        name: The run's.
        run_id: Its unique id.
        root: Its directory, as its storage has it.
        home: Its directory on rank 0's host.
        is_local: Whether the storage is a filesystem of this host.
        is_over: Whether nothing is left to train.
        attempt: The number of the attempt.
        checkpoint: The name of its newest checkpoint; None: what the trainer was given.
        iterations: Reports the run already has.
        time_total_s: Seconds the run has already trained.
        peers: All processes, by rank.
        positions: How far datasets had been read at that checkpoint, by name.
        layouts: What stands for the order of datasets' rows, by name.
    """

    name: str
    run_id: str
    root: str
    home: str
    is_local: bool
    is_over: bool
    attempt: int
    checkpoint: str | None
    iterations: int
    time_total_s: float
    peers: tuple[Present, ...]
    positions: dict[str, Any] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SignalSensed:
    """A rank was sent SIGTERM: its host is being taken away."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over.

    Attributes:
        status: As in ``run.json``.
        error: In words, if it failed.
        row: Its last.
    """

    status: str
    error: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Farewell:
    """A rank knows that the run is over, and needs nothing any more."""
