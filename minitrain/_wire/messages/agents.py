"""What the driver and its agents say to each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minitrain._os.gpus import Gpu
from minitrain._wire.messages.workers import WorkerOrder
from minitrain.exceptions import OomEvidence

__all__ = [
    "AgentReady",
    "AttemptGone",
    "FileAnswer",
    "FileRequest",
    "ForkedWorker",
    "FromWorker",
    "Output",
    "Ping",
    "Place",
    "Pong",
    "PreemptionSensed",
    "Preload",
    "RemoveTraces",
    "ServeStore",
    "StacksWritten",
    "StartFailed",
    "StartWorkers",
    "StopWorkers",
    "StoreServed",
    "Survey",
    "Surveyed",
    "TakeCode",
    "ToWorker",
    "WorkerExited",
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
class Ping:
    """The driver is alive.

    Attributes:
        timeout_s: After how long without a word from it the agent has to leave.
    """

    timeout_s: float


@dataclass(frozen=True, slots=True)
class RemoveTraces:
    """Remove what is left of another agent on this host, which its driver has lost.

    Attributes:
        name: The other agent's.
    """

    name: str


@dataclass(frozen=True, slots=True)
class TakeCode:
    """Keep the user's code at hand for workers, instead of any that came before.

    Attributes:
        archive: The files, as :mod:`minitrain._hosts.code` packs them.
    """

    archive: bytes


@dataclass(frozen=True, slots=True)
class ServeStore:
    """Serve a rendezvous store on a port the kernel chooses, until the attempt is gone.

    Attributes:
        for_others: Whether workers on other hosts will use it; otherwise it listens on loopback.
    """

    for_others: bool


@dataclass(frozen=True, slots=True)
class Survey:
    """Find out what this host can reach.

    Attributes:
        attempt: For which attempt.
        addresses: Where the rendezvous store may be reached, the likeliest first.
        port: Its port.
        folder: The run's directory, to be looked for here; empty: not asked.
        token: The name of a file that is in it.
        timeout_s: How long an address has to answer.
    """

    attempt: int
    addresses: tuple[str, ...]
    port: int
    folder: str
    token: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where one worker stands among the others.

    Attributes:
        rank: World rank.
        world_size: Workers of the attempt.
        local_rank: Rank among the workers of its host.
        local_world_size: Workers of its host.
        node_rank: Rank of its host.
        num_nodes: Hosts of the attempt.
        gpus: Its own GPUs, as ``CUDA_VISIBLE_DEVICES`` calls them.
        visible_gpus: Those of all workers of its host: each sees its peers' for direct copies.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    num_nodes: int = 1
    gpus: tuple[str, ...] = ()
    visible_gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StartWorkers:
    """Fork the workers of one attempt.

    Attributes:
        attempt: Number of the attempt within the run.
        places: One per worker of this host.
        payload: The pickled :class:`Payload`, the same for all.
        environ: The environment of every worker, but for what its place adds. On the driver's
            host it is all of it; elsewhere it comes on top of the host's own.
        own_variables: The names of those that the user set for workers.
        sys_path: The driver's module search path, or the part of it that other hosts have too.
        argv: The driver's ``sys.argv``.
        working_dir: Where workers start; empty: in a folder that is gone with the attempt.
        code_from: The folder whose packed files the agent was given: what lies below it on the
            driver's host lies with the agent here. Empty: nothing was.
        log_dir: Where ``rank_N.log`` is written; empty: their output goes to the driver.
        console_ranks: Those whose output goes to the driver.
        cpus_per_worker: What the user asked for, if anything.
        store_address: The rendezvous store's host.
        store_port: ... and its port.
        run_id: The run's id.
        max_restarts: The run's budget, for torchrun's variable of that name.
        files: Whether the driver serves the run's files to them (:class:`FileRequest`).
    """

    attempt: int
    places: tuple[Place, ...]
    payload: bytes
    environ: Mapping[str, str]
    own_variables: frozenset[str]
    sys_path: tuple[str, ...]
    argv: tuple[str, ...]
    working_dir: str
    code_from: str
    log_dir: str
    console_ranks: frozenset[int]
    cpus_per_worker: float | None
    store_address: str
    store_port: int
    run_id: str
    max_restarts: int
    files: bool = False


@dataclass(frozen=True, slots=True)
class ToWorker:
    """Pass an order on; dropped if the worker is gone.

    Attributes:
        attempt: Which attempt.
        rank: To whom; None: to every worker of the host.
        order: The order.
    """

    attempt: int
    rank: int | None
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
    """Have every worker write its Python stacks, also those that have been stopped.

    Attributes:
        attempt: Which attempt.
        timeout_s: How long workers have to answer.
    """

    attempt: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class FileAnswer:
    """Pass on a part of the answer to what a worker asked of the run's files."""

    attempt: int
    rank: int
    data: bytes = b""


# ---------------------------------------------------------------- agent to driver
@dataclass(frozen=True, slots=True)
class AgentReady:
    """The agent has imported what it preloads and waits for orders.

    Attributes:
        pid: Its process.
        hostname: What its host calls itself.
        addresses: Where others may reach its host, the likeliest first.
        num_cpus: The processors it may use.
        gpus: The GPUs its workers could use.
        time_s: The time there, on the host's monotonic clock.
    """

    pid: int
    hostname: str
    addresses: tuple[str, ...]
    num_cpus: int
    gpus: tuple[Gpu, ...]
    time_s: float


@dataclass(frozen=True, slots=True)
class Pong:
    """The agent is alive; the answer to :class:`Ping`."""


@dataclass(frozen=True, slots=True)
class StoreServed:
    """The rendezvous store listens."""

    port: int


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What a host can reach.

    Attributes:
        attempt: For which attempt.
        address: The first address that answered; None if none did.
        folder_problem: Why the run's directory is not seen here, in words; empty if it is.
    """

    attempt: int
    address: str | None
    folder_problem: str


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The agent could not start its workers: its disk is full, for one.

    Attributes:
        attempt: Which attempt.
        problem: Why, in words.
    """

    attempt: int
    problem: str


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
class FileRequest:
    """A part of what a worker asks of the run's files, as it came out of its pipe."""

    attempt: int
    rank: int
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Output:
    """What a worker printed, for the console, and for its log file if that is elsewhere."""

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


# ---------------------------------------------------------------- agent to worker, once
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
        file_fds: Where answers about the run's files arrive and questions go, if the driver
            serves them.
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
    file_fds: tuple[int, int] | None = None
