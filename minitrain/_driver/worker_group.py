"""The workers of one attempt, as the driver reaches them through their agents.

Everything that can happen arrives through :meth:`WorkerGroup.receive`, the one wait of a run.
"""

from __future__ import annotations

import math
import pickle
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import cloudpickle

from minitrain._driver.clerk import Clerk
from minitrain._driver.failures import exception_of
from minitrain._driver.fleet import Fleet
from minitrain._driver.interrupt import Interrupts
from minitrain._wire.channel import ChannelClosed
from minitrain._wire.messages import (
    AgentReady,
    AttemptGone,
    Execute,
    Executed,
    FileAnswer,
    FileRequest,
    FromWorker,
    Joined,
    Output,
    PreemptionSensed,
    Raised,
    Returned,
    StacksWritten,
    StartFailed,
    StoreServed,
    Surveyed,
    ToWorker,
    WorkerExited,
    WorkerNews,
    WorkerOrder,
    WorkerStarted,
    WriteStacks,
)
from minitrain.exceptions import HostError, LaunchError

__all__ = [
    "AgentLost",
    "Happening",
    "HostFailed",
    "HostNews",
    "Interrupt",
    "News",
    "StorageWorkDone",
    "WorkerGroup",
    "WorkersUnableError",
]


_STACKS_MARGIN_S = 2.0
"""How much longer than workers their agents have to say what stacks they wrote."""
_LOOK_S = 0.1
"""How long after an agent is ready all are looked at: not for each, of a thousand hosts."""


@dataclass(frozen=True, slots=True)
class News:
    """A worker said something."""

    rank: int
    message: WorkerNews


@dataclass(frozen=True, slots=True)
class HostNews:
    """The agent of a host said something.

    Attributes:
        host: The host's number in the fleet.
        message: What.
    """

    host: int
    message: (
        AgentReady | StoreServed | Surveyed | StartFailed | PreemptionSensed | StacksWritten
        | AttemptGone
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class AgentLost:
    """The agent of a host ended or is out of reach, and its workers with it."""

    host: int


@dataclass(frozen=True, slots=True)
class HostFailed:
    """No agent could be started on a host."""

    host: int
    error: HostError


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The driver was sent a signal: Ctrl-C, or SIGTERM.

    Attributes:
        signum: Which.
    """

    signum: signal.Signals


@dataclass(frozen=True, slots=True)
class StorageWorkDone:
    """The clerk has something to deliver."""


Happening: TypeAlias = (
    News | HostNews | WorkerStarted | WorkerExited | Output | AgentLost | HostFailed | Interrupt
    | StorageWorkDone | FileRequest
)  # fmt: skip


class WorkersUnableError(LaunchError):
    """Workers do not answer, or not in time; what happened to them is still to be received.

    Attributes:
        late: The ranks that took too long, for the reason that is this error's cause.
    """

    def __init__(self, text: str, late: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.late = late


class WorkerGroup:
    """The workers of one attempt.

    Args:
        fleet: Where they run.
        resources: Of one worker.

    Attributes:
        fleet: The agents of all hosts.
        attempt: The attempt they belong to.
        world_size: Their number.
        hosts: The hosts that have workers, by their numbers in the fleet.
        host_of: The host of every rank.
        pids: Their process ids, by rank.
        answer_by_s: Until when, on the monotonic clock, they must answer :meth:`execute`.
    """

    def __init__(self, fleet: Fleet, resources: dict[str, float]) -> None:
        self.fleet = fleet
        self._resources = resources
        self.attempt = -1
        self.world_size = 0
        self.hosts: list[int] = []
        self.host_of: list[int] = []
        self.pids: dict[int, int] = {}
        self._idle: set[int] = set()
        self._calls = 0
        self._kept: deque[Happening] = deque()
        self.answer_by_s: float | None = None
        self._heard: dict[int, int] = {}  # what is listened to, by the host's number
        self._told: dict[int, int] = {}  # what something waits to be written to
        self._unsent: set[int] = set()
        self._look_for_silence_s = 0.0
        self._selector = selectors.DefaultSelector()

    def listen_to(self, source: Clerk | Interrupts) -> None:
        """Wait for a clerk's work, or for signals, as well."""
        self._selector.register(source, selectors.EVENT_READ)

    def close(self) -> None:
        """Close what it waits with."""
        self._selector.close()

    def begin(self, attempt: int) -> None:
        """Turn to another attempt; its workers are not known yet."""
        self.attempt, self.world_size = attempt, 0
        self.hosts, self.host_of = [], []
        self.pids.clear()
        self._idle.clear()
        self._kept.clear()
        self.lease_lost_ones()

    def lease_lost_ones(self) -> None:
        """Have agents started on the hosts that have none, and listen to them."""
        for host in list(self._heard):
            if self.fleet.is_lost(host):
                self._turn_away_from(host)
        self.fleet.lease()
        self._look_for_silence_s = 0.0
        for host, agent in enumerate(self.fleet.agents):
            if agent is not None and not agent.lost and host not in self._heard:
                self._heard[host] = agent.read_fd
                self._selector.register(agent.read_fd, selectors.EVENT_READ, host)
                self._unsent.add(host)

    def place(self, places: Sequence[Sequence[object]]) -> None:
        """Note where the workers of the attempt will be, host by host."""
        self.hosts = [host for host, own in enumerate(places) if own]
        self.host_of = [host for host, own in enumerate(places) for _ in own]
        self.world_size = len(self.host_of)

    def host_name(self, rank: int) -> str:
        """Return the name of a rank's host, as users call it."""
        return self.fleet.name(self.host_of[rank])

    def hostname(self, rank: int) -> str:
        """Return what a rank's host calls itself."""
        return self.fleet.hostname(self.host_of[rank])

    def ranks_on(self, host: int) -> list[int]:
        """Return the ranks of a host."""
        return [rank for rank, own in enumerate(self.host_of) if own == host]

    @property
    def lost(self) -> bool:
        """Whether an agent of the attempt is gone."""
        return any(self.fleet.is_lost(host) for host in self.hosts)

    # ------------------------------------------------------------------ orders
    def order_host(self, host: int, order: Any, data: bytes = b"") -> None:
        """Send an agent an order; a lost agent is noticed by the next wait."""
        agent = self.fleet.agents[host]
        if agent is None or agent.lost:
            return
        with suppress(ChannelClosed):
            agent.send(order, data)
        if agent.wants_to_write:
            self._unsent.add(host)

    def order_hosts(self, order: Any) -> None:
        """Send an order to every agent that has workers of the attempt."""
        for host in self.hosts:
            self.order_host(host, order)

    def order(self, rank: int, order: WorkerOrder) -> None:
        """Send a worker an order."""
        self.order_host(self.host_of[rank], ToWorker(self.attempt, rank, order))

    def order_all(self, order: WorkerOrder) -> None:
        """Send every worker an order."""
        self.order_hosts(ToWorker(self.attempt, None, order))

    def answer_about_files(self, rank: int, data: bytes) -> None:
        """Send a worker a part of an answer about the run's files."""
        self.order_host(self.host_of[rank], FileAnswer(self.attempt, rank), data)

    def train(self, order: WorkerOrder) -> None:
        """Tell every worker to train; until they return they can do nothing else."""
        self._idle.clear()
        self.order_all(order)

    # ------------------------------------------------------------------ the one wait
    def receive(self, deadline_s: float | None) -> list[Happening]:
        """Return what has happened; waits until something does, or the deadline passes.

        Args:
            deadline_s: On the monotonic clock; None: for as long as it takes.
        """
        if self._kept:
            kept = list(self._kept)
            self._kept.clear()
            return kept
        return self._wait(deadline_s)

    def _wait(self, deadline_s: float | None) -> list[Happening]:
        while True:
            until_s = min(math.inf if deadline_s is None else deadline_s, self._look_for_silence_s)
            left_s = None if until_s == math.inf else max(0.0, until_s - time.monotonic())
            self._follow_unsent()
            happened: list[Happening] = []
            for key, _ in self._selector.select(left_s):
                if isinstance(key.fileobj, Interrupts):
                    happened += [Interrupt(signum) for signum in key.fileobj.take()]
                elif isinstance(key.fileobj, Clerk):
                    happened.append(StorageWorkDone())
                else:
                    happened += self._from_agent(key.data)
            if time.monotonic() >= self._look_for_silence_s:
                happened += self._silenced()
            if happened or (deadline_s is not None and time.monotonic() >= deadline_s):
                return happened

    def _follow_unsent(self) -> None:
        """Wait for agents to be writable exactly while something is unsent to them."""
        for host in self._unsent.union(self._told):
            agent = self.fleet.agents[host]
            wanted = agent is not None and not agent.lost and agent.wants_to_write
            if wanted == (host in self._told):
                continue
            fd = self._heard.get(host)
            if agent is None or fd is None:
                continue
            if agent.write_fd == fd:  # a socket
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
                self._selector.modify(fd, events, host)
            elif wanted:
                self._selector.register(agent.write_fd, selectors.EVENT_WRITE, host)
            else:
                self._selector.unregister(agent.write_fd)
            if wanted:
                self._told[host] = agent.write_fd
            else:
                del self._told[host]
        self._unsent.clear()

    def _turn_away_from(self, host: int) -> None:
        """Neither listen to an agent nor wait to tell it anything."""
        read_fd = self._heard.pop(host)
        for descriptor in {read_fd, self._told.pop(host, read_fd)}:
            with suppress(KeyError, ValueError):
                self._selector.unregister(descriptor)

    def _from_agent(self, host: int) -> list[Happening]:
        agent = self.fleet.agents[host]
        if agent is None or host not in self._heard:
            return []
        try:
            messages = agent.receive()
        except HostError as error:
            self._turn_away_from(host)
            self.fleet.drop(host, error)
            return [HostFailed(host, error)]
        except ChannelClosed:
            self._turn_away_from(host)
            agent.lost = True
            return [AgentLost(host)]
        if agent.wants_to_write:
            self._unsent.add(host)
        return [one for message in messages for one in self._unpacked(host, message)]

    def _silenced(self) -> list[Happening]:
        """Return the agents that have said nothing for too long, and turn away from them."""
        now_s = time.monotonic()
        self._look_for_silence_s = math.inf
        happened: list[Happening] = []
        for host in list(self._heard):
            agent = self.fleet.agents[host]
            if agent is None or agent.is_here or agent.facts is None:
                continue
            if now_s >= agent.heard_s + agent.silence_s:
                self._turn_away_from(host)
                agent.silent = True
                agent.kill()
                happened.append(AgentLost(host))
            else:
                due_s = min(agent.heard_s + agent.silence_s, now_s + agent.silence_s / 10)
                self._look_for_silence_s = min(self._look_for_silence_s, due_s)
        return happened

    def _unpacked(self, host: int, message: Any) -> list[Happening]:
        if isinstance(message, AgentReady):
            soon_s = time.monotonic() + _LOOK_S
            self._look_for_silence_s = min(self._look_for_silence_s, soon_s)
        if isinstance(message, AgentReady | StoreServed | PreemptionSensed):
            return [HostNews(host, message)]
        if message.attempt != self.attempt:
            return []  # late news from an attempt that is over
        if isinstance(message, FromWorker):
            news = [self._in_our_time(host, pickle.loads(data)) for data in message.news]
            self._follow(message.rank, news)
            return [News(message.rank, one) for one in news]
        if isinstance(message, WorkerStarted):
            self.pids[message.rank] = message.pid
        elif isinstance(message, WorkerExited):
            self._idle.discard(message.rank)
            message = self._in_our_time(host, message)
        if isinstance(message, WorkerStarted | WorkerExited | Output | FileRequest):
            return [message]
        assert isinstance(message, Surveyed | StartFailed | AttemptGone | StacksWritten)
        return [HostNews(host, message)]

    def _in_our_time(self, host: int, news: Any) -> Any:
        """Return news with the time it tells as this host's clock would have it."""
        if not isinstance(news, Raised | WorkerExited):
            return news
        agent = self.fleet.agents[host]
        if agent is None or agent.is_here:
            return news
        return replace(news, time_s=news.time_s - agent.clock_ahead_s)

    def _follow(self, rank: int, news: list[WorkerNews]) -> None:
        for one in news:
            if isinstance(one, Joined | Returned):
                self._idle.add(rank)
            elif isinstance(one, Raised):
                self._idle.discard(rank)

    def keep(self, happenings: Iterable[Happening]) -> None:
        """Put back what was received for somebody else."""
        self._kept.extend(happenings)

    # ------------------------------------------------------------------ for backends
    def __len__(self) -> int:
        """Return the number of workers."""
        return self.world_size

    def get_resources_per_worker(self) -> dict[str, float]:
        """Return the resources of one worker."""
        return dict(self._resources)

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call a function in every worker at once and return the results by rank.

        Raises:
            WorkersUnableError: A worker is gone, or busy training.
            Exception: What the function raised, from the lowest rank where it did.
        """
        return self._execute(range(self.world_size), (function, args, kwargs))

    def execute_single(
        self, rank: int, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Call a function in one worker and return its result; raises as :meth:`execute`."""
        return self._execute([rank], (function, args, kwargs))[0]

    def _execute(self, ranks: Iterable[int], call: tuple[Any, ...]) -> list[Any]:
        data = cloudpickle.dumps(call)
        waiting = list(ranks)
        self._require_idle(waiting)
        self._calls += 1
        order = Execute(self._calls, data)
        if len(waiting) == self.world_size:
            self.order_all(order)
        else:
            for rank in waiting:
                self.order(rank, order)
        answers: dict[int, Executed] = {}
        others: list[Happening] = []
        try:
            while len(answers) < len(waiting):
                happened = self._wait(self.answer_by_s)
                for happening in happened:
                    match happening:
                        case News(rank=rank, message=Executed() as answer) if (
                            answer.call == self._calls
                        ):
                            answers[rank] = answer
                        case _:
                            others.append(happening)
                if any(map(self._disturbs, happened)):
                    raise WorkersUnableError("workers ended while the backend asked them")
                if self.answer_by_s is not None and time.monotonic() >= self.answer_by_s:
                    late = sorted(set(waiting) - answers.keys())
                    raise LaunchError(f"rank {late} did not answer the backend in time")
        finally:
            self.keep(others)
        return [_value(answers[rank]) for rank in waiting]

    def _disturbs(self, happening: Happening) -> bool:
        """Return whether workers of the attempt may not answer any more."""
        if isinstance(happening, AgentLost):
            return happening.host in self.hosts  # another host's agent is of no concern
        return isinstance(happening, WorkerExited | Interrupt)

    def stacks(self, timeout_s: float) -> tuple[dict[int, str], set[int]]:
        """Have every worker write its stacks.

        Args:
            timeout_s: How long workers have to do so.

        Returns:
            The stacks by rank, and the hosts whose agents did not answer.
        """
        self.order_hosts(WriteStacks(self.attempt, timeout_s))
        deadline_s = time.monotonic() + timeout_s + _STACKS_MARGIN_S
        others: list[Happening] = []
        stacks: dict[int, str] = {}
        silent = set(self.hosts)
        while silent and time.monotonic() < deadline_s and not self.lost:
            for happening in self.receive(deadline_s):
                match happening:
                    case HostNews(host=host, message=StacksWritten(stacks=own)):
                        silent.discard(host)
                        stacks |= own
                    case _:
                        others.append(happening)
        self.keep(others)
        return stacks, {host for host in silent if not self.fleet.is_lost(host)}

    def _require_idle(self, ranks: Iterable[int]) -> None:
        busy = [rank for rank in ranks if rank not in self._idle]
        if busy:
            raise WorkersUnableError(f"rank {busy} cannot answer: it is training, or gone")


def _value(answer: Executed) -> Any:
    if answer.failure is not None:
        error = exception_of(answer.failure)
        error.add_note(answer.failure.traceback)
        raise error
    return pickle.loads(answer.value) if answer.value is not None else None
