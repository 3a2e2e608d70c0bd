"""What the driver and its workers say to each other, by way of their agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from minitrain._storage.disk import FileEntry
from minitrain._storage.run_storage import RunStorage

__all__ = [
    "Answer",
    "CheckpointCommitted",
    "CheckpointLost",
    "CheckpointsAsked",
    "CollectiveEntered",
    "Execute",
    "Executed",
    "Exit",
    "Joined",
    "NameAsked",
    "Payload",
    "Raised",
    "Reported",
    "Returned",
    "RunFacts",
    "Train",
    "Uploaded",
    "WorkerNews",
    "WorkerOrder",
]


# ---------------------------------------------------------------- driver to worker
@dataclass(frozen=True, slots=True)
class Execute:
    """Call a pickled ``(function, args, kwargs)`` and say what came of it."""

    call: int
    function: bytes


@dataclass(frozen=True, slots=True)
class Train:
    """Run the train function.

    Attributes:
        checkpoint: The checkpoint to start from, pickled: an agent that unpickled it would come to
            hold a connection to its storage.
        iterations: Reports the run already has.
        time_total_s: Seconds the run has already trained.
        rows: The run's log of reports, for rank 0 to write to; empty: the driver does, because
            rank 0 is on another host.
        positions: How far datasets had been read at that checkpoint, by name.
    """

    checkpoint: bytes | None
    iterations: int
    time_total_s: float
    rows: str = ""
    positions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the driver answers to a question; ``error`` is raised where it was asked."""

    question: int
    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class CheckpointCommitted:
    """The newest checkpoint is now that of the ``index``-th report."""

    name: str
    index: int


@dataclass(frozen=True, slots=True)
class CheckpointLost:
    """The checkpoint of the ``index``-th report could not be written after report() returned."""

    index: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Exit:
    """Leave."""


WorkerOrder: TypeAlias = Execute | Train | Answer | CheckpointCommitted | CheckpointLost | Exit


# ---------------------------------------------------------------- worker to driver
@dataclass(frozen=True, slots=True)
class Joined:
    """The worker has unpickled its payload and waits for orders."""


@dataclass(frozen=True, slots=True)
class Executed:
    """What became of an :class:`Execute`: a pickled value, or how it failed."""

    call: int
    value: bytes | None
    failure: Raised | None = None


@dataclass(frozen=True, slots=True)
class NameAsked:
    """A rank is about to write a checkpoint in its ``index``-th report; answered with its name.

    Attributes:
        question: To be answered.
        index: Of the report.
        dir_name: The name the user gave, if any.
        in_place: Whether the user has put the files there, or will.
    """

    question: int
    index: int
    dir_name: str | None
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class Reported:
    """One call of report().

    Attributes:
        index: How many this rank made before it in this attempt.
        metrics: As the user gave them, made plain.
        row: The whole row of the run's tables, without the configuration; only from rank 0.
        checkpoint: Name of the checkpoint this rank has files for.
        files: Those files.
        in_place: Whether the files are where the user put them, and nobody has looked at them.
        pending: Whether the files are still being written; :class:`Uploaded` follows.
        problem: Why the files could not be written.
        question: Set if the rank waits for an answer before it goes on.
        positions: How far this rank has read the datasets that are divided, by name.
    """

    index: int
    metrics: dict[str, Any]
    row: dict[str, Any] | None = None
    checkpoint: str | None = None
    files: tuple[FileEntry, ...] = ()
    in_place: bool = False
    pending: bool = False
    problem: Exception | None = None
    question: int | None = None
    positions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The files of a report that said they were pending are written, or could not be.

    Attributes:
        index: Of the report.
        files: The files.
        problem: Why they could not be written.
    """

    index: int
    files: tuple[FileEntry, ...] = ()
    problem: Exception | None = None


@dataclass(frozen=True, slots=True)
class CheckpointsAsked:
    """A rank asks for the run's checkpoints once those of its first reports are settled.

    Attributes:
        question: To be answered.
        num_reports: How many of them.
    """

    question: int
    num_reports: int


@dataclass(frozen=True, slots=True)
class CollectiveEntered:
    """A rank waits in barrier() or broadcast_from_rank_zero() for the others.

    Attributes:
        question: To be answered when all are there; None once it has been.
        operation: The function's name.
        data: What rank 0 broadcasts, pickled.
    """

    question: int | None
    operation: str
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Returned:
    """The train function returned.

    Attributes:
        num_reports: How many reports it made.
        value: What rank 0's returned, pickled.
        problem: Why it could not be pickled, if so.
        modules: All modules the worker has imported by now; only from rank 0.
    """

    num_reports: int
    value: bytes | None
    problem: str = ""
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Raised:
    """The train function, or a function of the backend, raised.

    Attributes:
        type_name: Qualified name of the exception's class.
        message: Its text.
        traceback: The formatted traceback, the user's frames only.
        exception: The pickled exception, if it can be.
        pid: The worker's process.
        hostname: Its host.
        time_s: When, on the host's monotonic clock.
    """

    type_name: str
    message: str
    traceback: str
    exception: bytes | None
    pid: int
    hostname: str
    time_s: float


WorkerNews: TypeAlias = (
    Joined
    | Executed
    | NameAsked
    | Reported
    | Uploaded
    | CheckpointsAsked
    | CollectiveEntered
    | Returned
    | Raised
)


@dataclass(frozen=True, slots=True)
class Payload:
    """What a worker needs to train; pickled once by the driver, the same for every rank.

    Attributes:
        train: The user's function and configuration, pickled by cloudpickle: it is unpickled
            after the worker has its environment, its path and its log.
        run: What the run's context says.
    """

    train: bytes
    run: RunFacts


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a worker knows of its run.

    Attributes:
        name: The run's name.
        run_id: Its unique id.
        path: The run's directory, where its storage has it.
        storage: What the run's checkpoints are written to and read from.
        trial_name: What ray.train calls the trial.
        metadata: The user's, for every checkpoint.
        resources: Of one worker.
        score_attribute: The metric that ranks checkpoints.
        asks_to_go_on: Whether every report waits for the driver's word (a stop condition).
        collective_timeout_s: How long a rank waits for others.
        config: The configuration as plain data, for the rows.
    """

    name: str
    run_id: str
    path: str
    storage: RunStorage
    trial_name: str
    metadata: Mapping[str, Any]
    resources: Mapping[str, float]
    score_attribute: str | None
    asks_to_go_on: bool
    collective_timeout_s: float
    config: Any = field(default=None)

    @property
    def remote_filesystem(self) -> Any:
        """What holds the run, if that is not this host's own filesystem."""
        return None if self.storage.is_local else self.storage.filesystem
