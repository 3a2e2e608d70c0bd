"""Everything that driver, agents and workers say to each other, as frozen dataclasses.

Orders go down and are imperative; news goes up and says what happened::

    driver  --orders-->  agent  --orders-->  worker
            <---news---         <---news---

An agent passes a worker's messages on unread (:class:`ToWorker`, :class:`FromWorker`); what users
wrote travels inside them as bytes and is unpickled by workers only, their results by the driver.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from minitrain._storage.disk import FileEntry
from minitrain._storage.run_storage import RunStorage
from minitrain.exceptions import OomEvidence

__all__ = [
    "AgentReady",
    "Answer",
    "AttemptGone",
    "CheckpointCommitted",
    "CheckpointLost",
    "CheckpointsAsked",
    "CollectiveEntered",
    "Execute",
    "Executed",
    "Exit",
    "ForkedWorker",
    "FromWorker",
    "Joined",
    "NameAsked",
    "Output",
    "Payload",
    "Place",
    "PreemptionSensed",
    "Preload",
    "Raised",
    "Reported",
    "Returned",
    "RunFacts",
    "ServeStore",
    "StacksWritten",
    "StartWorkers",
    "StopWorkers",
    "StoreServed",
    "ToWorker",
    "Train",
    "Uploaded",
    "WorkerExited",
    "WorkerNews",
    "WorkerOrder",
    "WorkerStarted",
    "WriteStacks",
]


# ---------------------------------------------------------------- driver to agent
@dataclass(frozen=True, slots=True)
class Preload:
    """Import modules, so that workers are forked with them.

    Attributes:
        modules: Their names.
        when_idle: Whether to wait for a moment with nothing else to do.
    """

    modules: tuple[str, ...]
    when_idle: bool = False


@dataclass(frozen=True, slots=True)
class ServeStore:
    """Serve a rendezvous store on a port the kernel chooses, until the attempt is gone."""

    address: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where one worker stands among the others.

    Attributes:
        rank: World rank.
        world_size: Workers of the attempt.
        local_rank: Rank among the workers of its host.
        local_world_size: Workers of its host.
        node_rank: Rank of its host.
        gpus: Its own GPUs, as ``CUDA_VISIBLE_DEVICES`` calls them.
        visible_gpus: Those of all workers of its host: each sees its peers' for direct copies.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    gpus: tuple[str, ...] = ()
    visible_gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StartWorkers:
    """Fork the workers of one attempt.

    Attributes:
        attempt: Number of the attempt within the run.
        places: One per worker of this host.
        payload: The pickled :class:`Payload`, the same for all.
        environ: The whole environment of every worker, but for what its place adds.
        own_variables: The names of those that the user set for workers.
        sys_path: The driver's module search path.
        argv: The driver's ``sys.argv``.
        working_dir: Where workers start.
        log_dir: Where ``rank_N.log`` is written; it exists.
        console_ranks: Those whose output also goes to the driver.
        cpus_per_worker: What the user asked for, if anything.
        store_address: The rendezvous store's host.
        store_port: ... and its port.
        run_id: The run's id.
        max_restarts: The run's budget, for torchrun's variable of that name.
    """

    attempt: int
    places: tuple[Place, ...]
    payload: bytes
    environ: Mapping[str, str]
    own_variables: frozenset[str]
    sys_path: tuple[str, ...]
    argv: tuple[str, ...]
    working_dir: str
    log_dir: str
    console_ranks: frozenset[int]
    cpus_per_worker: float | None
    store_address: str
    store_port: int
    run_id: str
    max_restarts: int


@dataclass(frozen=True, slots=True)
class ToWorker:
    """Pass an order on; dropped if the worker is gone."""

    attempt: int
    rank: int
    order: WorkerOrder


@dataclass(frozen=True, slots=True)
class StopWorkers:
    """End every worker of the attempt, and whatever they started.

    Attributes:
        attempt: Which attempt.
        leave_s: How long workers may take to leave by themselves before SIGTERM.
        grace_s: The time from SIGTERM to SIGKILL.
    """

    attempt: int
    leave_s: float
    grace_s: float


@dataclass(frozen=True, slots=True)
class WriteStacks:
    """Write the Python stacks of every worker, also of those that have been stopped.

    Attributes:
        attempt: Which attempt.
        log_dir: Where ``stacks_rank_N.txt`` is written.
        timeout_s: How long workers have to answer.
    """

    attempt: int
    log_dir: str
    timeout_s: float


# ---------------------------------------------------------------- agent to driver
@dataclass(frozen=True, slots=True)
class AgentReady:
    """The agent has imported what it preloads and waits for orders."""

    pid: int
    hostname: str
    address: str
    num_cpus: int


@dataclass(frozen=True, slots=True)
class StoreServed:
    """The rendezvous store listens."""

    port: int


@dataclass(frozen=True, slots=True)
class PreemptionSensed:
    """The agent was sent SIGTERM: its host is being taken away."""


@dataclass(frozen=True, slots=True)
class StacksWritten:
    """The Python stacks of every worker, by rank, or in words why there are none."""

    attempt: int
    stacks: dict[int, str]


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """A worker has been forked."""

    attempt: int
    rank: int
    pid: int


@dataclass(frozen=True, slots=True)
class FromWorker:
    """What one worker said, in order, each message still pickled."""

    attempt: int
    rank: int
    news: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What a worker printed, for the console; its log file has it already."""

    attempt: int
    rank: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """A worker's process is gone; all it said before has been passed on.

    Attributes:
        attempt: Which attempt.
        rank: World rank.
        exitcode: Negative for a signal.
        peak_bytes: Its peak resident memory.
        time_s: When the agent noticed, on the host's monotonic clock.
        oom: What the kernel says of out-of-memory kills, if it was SIGKILL.
    """

    attempt: int
    rank: int
    exitcode: int
    peak_bytes: int
    time_s: float
    oom: OomEvidence | None = None


@dataclass(frozen=True, slots=True)
class AttemptGone:
    """Nothing of the attempt is left on this host, but for processes even SIGKILL did not end."""

    attempt: int
    survivors: tuple[int, ...]


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
    """

    checkpoint: bytes | None
    iterations: int
    time_total_s: float


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
        home: The directory on this host with the run's log of reports.
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
    home: str
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


@dataclass(frozen=True, slots=True)
class ForkedWorker:
    """What an agent hands to a worker across the fork; never sent anywhere.

    Attributes:
        start: The order it belongs to.
        place: Which of its places.
        ring: The worker's result queue.
        orders_fd: Where the driver's orders arrive.
        output_fd: Where its standard output and error go.
        close_fds: The agent's descriptors, of no business to a worker.
        agent_pid: Its parent.
        interface: The network interface that reaches the store.
        num_cpus: This host's processors.
    """

    start: StartWorkers
    place: Place
    ring: Any
    orders_fd: int
    output_fd: int
    close_fds: tuple[int, ...]
    agent_pid: int = field(default_factory=os.getpid)
    interface: str | None = None
    num_cpus: int = 1
